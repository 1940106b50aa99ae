"""The command line: `llm-grpc`. Each command is a module of its own, imported when it is called."""

from __future__ import annotations

import os
import sys

from cyclopts import App, CycloptsError
from cyclopts.config import Env

from llm_grpc import __version__
from llm_grpc.cli.config_file import config_file
from llm_grpc.cli.listen_address import one_address, service_links
from llm_grpc.cli.messages import fail, usage_error
from llm_grpc.cli.server_address import server_address
from llm_grpc.errors import LLMGrpcError

USAGE_ERROR = 2

SERVER_SETTINGS = [Env("LLM_GRPC_", command=False), service_links, config_file, one_address]
"""`serve`: a flag, else its variable, else the file."""

COMMAND_SETTINGS = [Env("LLM_GRPC_"), server_address]
"""The others: a flag, else LLM_GRPC_<COMMAND>_<FLAG>, for in a server's container LLM_GRPC_MODEL and its like
speak of the server. The address alone falls back to where the server of this environment listens."""

COMMANDS = {
    "serve": """Serve a model, or several, until SIGTERM or SIGINT, then let running calls finish. A flag
        beats its environment variable, which beats the configuration file.""",
    "generate": "Ask a server to continue a prompt and print the text alone.",
    "health": "Check a server's health and print its status.",
    "export": """Export a Hugging Face model through optimum to a model directory that `serve --model` takes.
        Verifies it. Needs llm-grpc[export,cpu]; reads safetensors only and runs no remote code.""",
    "export-adapter": """Write a LoRA adapter that PEFT saved for an exported model, as LoadAdapter and
        `serve --adapter` take it. Needs llm-grpc[export,cpu]; reads safetensors only.""",
    "verify": """Compare a model directory with the torch model that it was exported from: logits, KL
        divergence, greedy tokens, perplexity. Needs llm-grpc[export,cpu].""",
    "bench": """Measure a running server, or one that it starts: throughput, latencies, goodput, CPU time and
        memory, at a rate, at a concurrency, or by a trace. --plot needs llm-grpc[bench].""",
    "demo": "Serve the embedded model, show each task's answer whole and token by token, stop.",
    "doctor": """Print the driver, the GPUs, the providers and the versions that are here, and test what can
        be used: a product of matrices, and generation with the embedded model.""",
}
"""A line for each command: here, so that `--help` imports none of them."""

EXIT_CODES = {
    "serve": "0 after a drain; 1 the server could not start, or broke",
    "generate": "0 with the text on stdout; 1 the call failed",
    "health": """0 SERVING; 4 any other status; 3 no answer (unreachable, or too late); 1 the check was
        refused (an unknown service, say)""",
    "export": "0 with the directory written; 1 the export failed; 130 interrupted, nothing written",
    "export-adapter": "0 with the directory written; 1 the adapter cannot be served with this model",
    "verify": "0 within the limits; 1 outside them, or it could not be found out; 130 interrupted",
    "bench": """0 measured, with errors or without; 1 nothing was answered, or it could not be measured; 130
        interrupted, the figures until then printed""",
    "demo": "0 all went well and the server stopped cleanly; 1 anything else",
    "doctor": """0 all tests passed; 1 one failed, or a GPU cannot be used that was asked for or that this
        onnxruntime is built for""",
}


def build_app() -> App:
    """Assemble the commands. Their modules are imported when needed."""
    app = App(name="llm-grpc", help="Text generation over gRPC on ONNX Runtime.", version=__version__)
    for name, summary in COMMANDS.items():
        module = name.replace("-", "_")
        app.command(
            f"llm_grpc.cli.{module}:{module}",
            name=name,
            config=SERVER_SETTINGS if name == "serve" else COMMAND_SETTINGS,
            help=" ".join(summary.split()),
            help_epilogue=f"Exit codes: {' '.join(EXIT_CODES[name].split())}; 2 a wrong setting.",
        )
    model = App(name="model", help="Look at model directories.")
    model.command(
        "llm_grpc.cli.model:inspect",
        name="inspect",
        config=COMMAND_SETTINGS,
        help="Print what a model directory holds, and how many slots of its cache fit into memory.",
        help_epilogue="Exit codes: 0 printed; 1 it is no model directory; 2 a wrong setting.",
    )
    app.command(model)
    return app


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 2 where the command line or the configuration is wrong."""
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left (`| head`). Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(argv: list[str]) -> int:
    try:
        result = build_app()(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return fail(usage_error(error), USAGE_ERROR)
    except LLMGrpcError as error:
        return fail(str(error))
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
