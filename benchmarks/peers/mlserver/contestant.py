"""MLServer's HuggingFace runtime with ``optimum_model``, over HTTP: texts in, texts out.

It takes text alone, so each prompt is as many words as the request has tokens, every word one token.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.peers.harness import MAX_RUNNING, Request, batches, main

HANG_S = 1800.0
PORTS = {"http_port": 18780, "grpc_port": 18781, "metrics_port": 18782}
ADDRESS = f"127.0.0.1:{PORTS['http_port']}"
WORD = re.compile("Ġ[a-z]+")


class Server:
    """A call for each batch; it returns when all of the batch is done."""

    def __init__(self, tokenizer: Tokenizer, process: int) -> None:
        self.tokenizer = tokenizer
        self.words = sorted(token[1:] for token in tokenizer.get_vocab() if WORD.fullmatch(token))
        self.processes = [process]

    def run(self, requests: Sequence[Request]) -> None:
        """Serve them in order of arrival."""
        for batch in batches(requests):
            self._run_batch(batch)

    def _run_batch(self, batch: Sequence[Request]) -> None:
        texts = [self._text(request) for request in batch]
        body = json.dumps(_body(texts, max(request.max_tokens for request in batch)))
        for request in batch:
            request.begin()
        connection = http.client.HTTPConnection(ADDRESS, timeout=HANG_S)
        with contextlib.closing(connection):
            connection.request("POST", "/v2/models/model/infer", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read().decode()
        if response.status != http.client.OK:
            raise RuntimeError(f"HTTP {response.status}: {answer[:300]}")
        for request in batch:
            request.stamp(request.max_tokens)

    def _text(self, request: Request) -> str:
        rng = random.Random(request.index)
        text = "".join(f" {rng.choice(self.words)}" for _ in request.prompt)
        request.prompt_tokens = len(self.tokenizer.encode(text).ids)
        return text


def _body(texts: Sequence[str], tokens: int) -> dict[str, Any]:
    """Arguments of the pipeline are inputs of the request; ``array_inputs`` is the batch."""
    arguments = {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
        "return_full_text": False,
    }
    inputs = [{"name": "array_inputs", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}]
    for name, value in arguments.items():
        as_json = {"parameters": {"content_type": "hg_json"}, "datatype": "BYTES", "shape": [1]}
        inputs.append({"name": name, "data": [json.dumps(value)], **as_json})
    return {"inputs": inputs}


def _write_settings(directory: Path, model_dir: Path, threads: int) -> None:
    """No worker processes: the model runs in the process that is measured."""
    server = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **PORTS}
    options = {"task": "text-generation", "pretrained_model": str(model_dir), "optimum_model": True}
    options |= {"framework": "pt", "intra_op_threads": threads}
    model = {
        "name": "model",
        "implementation": "mlserver_huggingface.HuggingFaceRuntime",
        "max_batch_size": MAX_RUNNING,
        "parameters": {"extra": options},
    }
    (directory / "settings.json").write_text(json.dumps(server), encoding="utf-8")
    (directory / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")


@contextlib.contextmanager
def load(model_dir: Path, threads: int) -> Iterator[Server]:
    """Start the server and wait until the model is ready."""
    with tempfile.TemporaryDirectory() as directory:
        _write_settings(Path(directory), model_dir, threads)
        command = [str(Path(sys.executable).with_name("mlserver")), "start", directory]
        process = subprocess.Popen(command, stdout=sys.stderr)
        try:
            _wait(process)
            yield Server(Tokenizer.from_file(str(model_dir / "tokenizer.json")), process.pid)
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection(ADDRESS, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/v2/models/model/ready")
                if connection.getresponse().status == http.client.OK:
                    return
        time.sleep(0.2)
    raise RuntimeError(f"the server ended with {process.returncode}")


if __name__ == "__main__":
    main(load, ["mlserver", "mlserver-huggingface", "optimum", "transformers", "torch", "onnxruntime"])
