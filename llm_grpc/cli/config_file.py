"""The YAML file of `llm-grpc serve`: the fields of the configuration, flat or in blocks, and its models."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection, CycloptsError, Token

MODELS = "models"
"""The key of the list that `model_entries` reads."""

MAPPINGS = ("adapters",)
"""Keys whose value may be a mapping of one-line values; as flags they are NAME=VALUE,…"""


def config_file(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the arguments that neither flag nor variable set what the file named by `--config` says.

    Raises:
        CycloptsError: the file cannot be read or is not a mapping; a key is unknown, set twice, no scalar, or
            in a block where it does not belong.
    """
    config = arguments.get("--config", None)
    if config is None or not config.tokens:
        return
    path = config.tokens[0].value
    flags = {a.name: a for a in arguments if a.name.startswith("--") and a is not config}
    fields = {name.removeprefix("--").replace("-", "_"): a for name, a in flags.items()}
    seen: set[str] = set()
    for key, value in _entries(load(Path(path)), path):
        if key in seen:
            raise CycloptsError(msg=f"{path}: {key} is set twice")
        seen.add(key)
        if key not in fields:
            raise CycloptsError(msg=f"{path}: unknown key {key}{suggestion(key, fields)}")
        text = one_value(key, value, f"{path}: {key}")
        if not fields[key].tokens:
            fields[key].append(Token(keyword=key, value=text, source=path))


def one_value(key: str, value: object, where: str) -> str:
    """The value of a key as its flag has it, also that of a mapping where the key takes one.

    Raises:
        CycloptsError: it is neither; the message begins with ``where``.
    """
    if key in MAPPINGS and isinstance(value, dict):
        return ",".join(f"{name}={scalar(entry, f'{where}.{name}')}" for name, entry in value.items())
    return scalar(value, where)


def load(path: Path) -> dict[Any, Any]:
    """The entries of a file; an empty one has none.

    Raises:
        CycloptsError: it cannot be read, is no YAML, or is not a mapping.
    """
    import yaml  # noqa: PLC0415 - most starts read no file

    try:
        data = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise CycloptsError(msg=f"cannot read the configuration file {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise CycloptsError(msg=f"{path} is not valid YAML: {error.problem}{where}") from error
    except yaml.YAMLError as error:
        raise CycloptsError(msg=f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict | None):
        raise CycloptsError(msg=f"{path} must hold `key: value` lines, not {kind(data)}")
    return data or {}


def _entries(data: dict[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a mapping, those of its blocks in their place."""
    from llm_grpc.config import BLOCKS  # noqa: PLC0415 - other commands have no configuration

    for key, value in data.items():
        if key in BLOCKS and isinstance(value, dict | None):
            for inner in value or {}:
                _check_block(str(inner), key, path)
            yield from ((str(inner), each) for inner, each in (value or {}).items())
        elif key != MODELS:
            yield str(key), value


def _check_block(key: str, block: str, path: str) -> None:
    """A key in the wrong block is most likely a mistake about what it does."""
    from llm_grpc.config import BLOCKS  # noqa: PLC0415 - other commands have no configuration

    owner = next((name for name, group in BLOCKS.items() if key in group.__dataclass_fields__), block)
    if owner != block:
        raise CycloptsError(msg=f"{path}: {block}.{key} belongs in {owner}")


def scalar(value: object, where: str) -> str:
    """The text of one value of the file, as a flag would say it; ``where`` begins the error."""
    if not isinstance(value, str | int | float):
        raise CycloptsError(msg=f"{where} must be one value, not {kind(value)}")
    return str(value)


def suggestion(key: str, known: Iterable[str]) -> str:
    """What a key that is not known may have meant."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def kind(value: object) -> str:
    """What a value of the file is, in words."""
    names = {dict: "a mapping", list: "a list", type(None): "empty"}
    return names.get(type(value), f"the single value {value!r}")
