"""optimum-intel's exporter with NNCF: ``python convert.py CHECKPOINT DIRECTORY FORMAT``."""

import subprocess
import sys
from pathlib import Path

checkpoint, directory, precision = sys.argv[1:]
exporter = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "-m", checkpoint]
options = ["--task", "text-generation-with-past", "--weight-format", precision]
subprocess.run([*exporter, *options, directory], check=True)
