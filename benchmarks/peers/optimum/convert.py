"""optimum's exporter and its dynamic int8 quantisation: ``python convert.py CHECKPOINT DIRECTORY int8``."""

import shutil
import sys
import tempfile
from pathlib import Path

from optimum.onnxruntime import ORTModelForCausalLM, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig

checkpoint, directory, _ = sys.argv[1:]
with tempfile.TemporaryDirectory(dir=Path(directory).parent) as exported:
    ORTModelForCausalLM.from_pretrained(checkpoint, export=True).save_pretrained(exported)
    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    quantizer = ORTQuantizer.from_pretrained(exported, file_name="model.onnx")
    quantizer.quantize(save_dir=directory, quantization_config=settings, file_suffix="")
for file in Path(checkpoint).glob("*token*.json"):
    shutil.copy(file, directory)
