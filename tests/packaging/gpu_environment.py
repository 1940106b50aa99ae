"""An environment with onnxruntime-gpu, made once, outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

LEFT_OUT = (
    "nvidia-cublas",
    "nvidia-cuda-",
    "nvidia-cudnn",
    "nvidia-cufft",
    "nvidia-curand",
    "nvidia-nvjitlink",
)
"""CUDA's own libraries, of 2 GB: what is tested without a GPU is tested without them."""


def gpu_python(repository: Path) -> Path:
    """The interpreter of an environment with the lock for GPUs but for CUDA's libraries, and this package.

    Made where it is missing, beside the other tools of the tests.
    """
    lock = repository / "requirements/cuda.txt"
    wanted = requirements(lock.read_text())
    digest = hashlib.sha256((sys.version + wanted).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "llm-grpc" / f"onnxruntime-gpu-{digest}"
    python = directory / "bin/python"
    if not (directory / ".complete").exists():
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        chosen = directory / "requirements.txt"
        chosen.write_text(wanted)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-compile"]
        subprocess.run([*pip, "--require-hashes", "--no-deps", "-r", str(chosen)], check=True)
        (directory / ".complete").touch()
    return python


def requirements(lock: str) -> str:
    """The lock without what is left out."""
    blocks = ("\n" + lock.strip()).replace("\n    ", "\0").split("\n")[1:]
    kept = [block for block in blocks if not block.startswith(LEFT_OUT)]
    return "\n".join(kept).replace("\0", "\n    ") + "\n"
