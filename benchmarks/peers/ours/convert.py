"""``llm-grpc export``: ``python convert.py CHECKPOINT DIRECTORY int8|int8-kv8|int4|int4-b128``.

The limits of the verification are for trained weights, hence --allow-inexact.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.checkpoint import sentences

checkpoint, directory, name = sys.argv[1:]
weights, _, variant = name.partition("-")
with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as text:
    text.write("\n".join(sentences(24)))
    text.flush()
    export = [
        sys.executable,
        "-m",
        "llm_grpc.cli.main",
        "export",
        checkpoint,
        directory,
        "--weights",
        weights,
    ]
    flags = ["--allow-inexact", "--tokens", "4"]
    if variant == "b128":
        flags += ["--block-size", "128"]
    if variant == "kv8":
        flags += ["--kv-cache", "int8", "--calibrate", text.name]
    subprocess.run([*export, *flags], check=True)
assert Path(directory, "manifest.json").exists()
