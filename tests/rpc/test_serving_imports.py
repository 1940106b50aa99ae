"""Serving needs none of the packages that export does."""

from __future__ import annotations

import json
import subprocess
import sys

EXPORT_ONLY = {"torch", "transformers", "optimum", "onnx", "onnxscript", "safetensors"}

SERVE_ONE_CALL = """
import asyncio, json, sys
import grpc
from llm_grpc.cli.main import build_app
from llm_grpc.cli.serve import serve
from llm_grpc.config import EngineConfig, ModelConfig, ModelSettings, ServerConfig
from llm_grpc.server.app import Server
from llm_grpc.server.run import run
from llm_grpc.v1 import llm_pb2, llm_pb2_grpc

async def main():
    ports = dict.fromkeys(("address", "metrics_address", "admin_address"), "127.0.0.1:0")
    models = [ModelSettings(ModelConfig(), EngineConfig(max_running=1))]
    server = Server(models, ServerConfig(**ports))
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        request = llm_pb2.GenerateTextRequest(prompt="go", max_tokens=4)
        await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(request)
    await server.close()

asyncio.run(main())
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_serving_imports_nothing_of_export() -> None:
    command = [sys.executable, "-c", SERVE_ONE_CALL]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    imported = set(json.loads(done.stdout))
    assert {"llm_grpc", "onnxruntime", "tokenizers"} <= imported
    assert not imported & EXPORT_ONLY
