"""llama.cpp's server out of a wheel's library, in a process of its own: ``python server.py GGUF THREADS``.

Prints its address, then serves until its input ends.
"""

import sys

import xllamacpp as llama

params = llama.CommonParams()
params.model.path = sys.argv[1]
params.n_parallel = 16
params.n_ctx = 16 * 1024
params.cont_batching = True
params.cache_prompt = False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
server = llama.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
