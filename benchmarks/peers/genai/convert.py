"""onnxruntime-genai's own model builder: ``python convert.py CHECKPOINT DIRECTORY FORMAT``."""

import subprocess
import sys
import tempfile

checkpoint, directory, precision = sys.argv[1:]
with tempfile.TemporaryDirectory() as cache:
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", checkpoint, "-o", directory]
    options = ["-p", precision, "-e", "cpu", "-c", cache, "--extra_options", "int4_accuracy_level=4"]
    subprocess.run([*builder, *options], check=True)
