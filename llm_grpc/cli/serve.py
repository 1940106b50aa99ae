from __future__ import annotations

from pathlib import Path

from llm_grpc.cli.extras import needs_extra
from llm_grpc.cli.model_entries import model_settings
from llm_grpc.config import EngineConfig, ModelConfig, ModelSettings, ServerConfig

# Without a default a group of flags would be required.
DEFAULT_MODEL, DEFAULT_ENGINE, DEFAULT_SERVER = ModelConfig(), EngineConfig(), ServerConfig()


def serve(
    *,
    config: Path | None = None,
    model: ModelConfig = DEFAULT_MODEL,
    engine: EngineConfig = DEFAULT_ENGINE,
    server: ServerConfig = DEFAULT_SERVER,
) -> int:
    """Run the server; return its exit code. A setting out of its range never gets here.

    Parameters
    ----------
    config
        YAML file with any of these settings: `max_running: 32`, and a list of models.
    """
    models = model_settings(config, ModelSettings(model, engine))
    with needs_extra("install llm-grpc[cpu] or llm-grpc[cuda]"):
        from llm_grpc.server.run import run  # noqa: PLC0415 - `serve --help` needs no runtime

        return run(models, server)
