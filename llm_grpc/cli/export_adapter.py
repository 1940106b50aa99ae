from __future__ import annotations

from pathlib import Path

from llm_grpc.cli.extras import needs_extra


def export_adapter(source: Path, adapter_dir: Path, /, *, model: Path) -> int:
    """Write an adapter directory.

    Parameters
    ----------
    source
        Directory of a LoRA adapter as PEFT saves it: adapter_config.json and adapter_model.safetensors.
    adapter_dir
        Directory to write; one that holds an adapter is replaced.
    model
        Directory of the exported model that it is for, made with --max-adapter-rank.
    """
    with needs_extra("install llm-grpc[export,cpu]"):
        from llm_grpc.export.adapter import export_adapter as run_export  # noqa: PLC0415 - imports torch

        manifest = run_export(source, adapter_dir, model)
    print(f"wrote {adapter_dir}: rank {manifest.rank}, {len(manifest.modules)} linear layers")
    return 0
