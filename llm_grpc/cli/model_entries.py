"""The models that `llm-grpc serve` serves: one by flags, or those that the file lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError
from pydantic import ValidationError

from llm_grpc.cli.config_file import MODELS, kind, load, one_value, suggestion
from llm_grpc.cli.messages import problem
from llm_grpc.config import EngineConfig, ModelConfig, ModelSettings

_NAME = "name"
_MODEL_KEYS = {field.name for field in fields(ModelConfig)} - {"model_name"}
_ENGINE_KEYS = {field.name for field in fields(EngineConfig)}


def model_settings(file: Path | None, defaults: ModelSettings) -> tuple[ModelSettings, ...]:
    """The models in their order; what an entry of the file leaves out is as in ``defaults``.

    Without a list in the file there is one model, that of ``defaults``.

    Raises:
        CycloptsError: an entry is no mapping, has no name or that of another, or a key or value is wrong; the
            message names the entry and the key.
    """
    data = load(file) if file else {}
    if MODELS not in data:
        return (_placed(defaults),)
    entries = data[MODELS]
    if not isinstance(entries, list) or not entries:
        found = "an empty list" if entries == [] else kind(entries)
        raise CycloptsError(msg=f"{file}: {MODELS} must be a list of mappings, not {found}")
    if defaults.model.model_name:
        name = f"model_name is {defaults.model.model_name!r}"
        raise CycloptsError(msg=f"{name}, and {file} lists {MODELS}, each of which has its own name there")
    listed = [_settings(entry, defaults, f"{MODELS}[{at}]", file) for at, entry in enumerate(entries)]
    _check_names([each.model.model_name for each in listed], file)
    return tuple(map(_placed, listed))


def _settings(entry: object, defaults: ModelSettings, where: str, file: Path | None) -> ModelSettings:
    if not isinstance(entry, dict):
        raise CycloptsError(msg=f"{file}: {where} must be a mapping, not {kind(entry)}")
    known = {_NAME, *_MODEL_KEYS, *_ENGINE_KEYS}
    for key in entry:
        if key not in known:
            raise CycloptsError(msg=f"{file}: unknown key {where}.{key}{suggestion(str(key), known)}")
    values = {key: one_value(key, value, f"{file}: {where}.{key}") for key, value in entry.items()}
    name = values.pop(_NAME, "")
    if not name:
        raise CycloptsError(msg=f"{file}: {where} has no name")
    try:
        return ModelSettings(
            replace(defaults.model, model_name=name, **_of(values, _MODEL_KEYS)),
            replace(defaults.engine, **_of(values, _ENGINE_KEYS)),
        )
    except ValidationError as error:
        faults: list[dict[str, Any]] = [dict(fault) for fault in error.errors(include_url=False)]
        keys = [_NAME if fault["loc"][0] == "model_name" else fault["loc"][0] for fault in faults]
        lines = [
            f"{where}.{key} in {file}: {problem(fault)}" for key, fault in zip(keys, faults, strict=True)
        ]
        raise CycloptsError(msg="; ".join(lines)) from None


def _of(values: Mapping[str, str], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in keys}


def _check_names(names: list[str], file: Path | None) -> None:
    for at, name in enumerate(names):
        if (first := names.index(name)) < at:
            raise CycloptsError(
                msg=f"{file}: {MODELS}[{at}].name is {name!r}, and so is that of {MODELS}[{first}]"
            )


def _placed(settings: ModelSettings) -> ModelSettings:
    """With the embedded model that is for the device."""
    return settings._replace(model=settings.model.on(settings.engine.device))
