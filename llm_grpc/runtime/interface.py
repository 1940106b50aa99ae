"""Whether a graph is what its manifest says, before any memory is bound to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from llm_grpc import graph_names as names
from llm_grpc.adapter_room import AdapterRoom
from llm_grpc.errors import ManifestError
from llm_grpc.manifest import KvCache, Manifest
from llm_grpc.runtime.staged_session import StagedSession

_ORT_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "int8": "tensor(int8)",
}

_Shape = list[int | None]
"""None is any size."""


class _Stated(BaseModel):
    vocabulary_size: int
    context_tokens: int
    kv_cache: KvCache


def check_interface(session: StagedSession, manifest: Manifest) -> None:
    """Raise ManifestError unless the graph, or all stages of it, takes and gives what the manifest states.

    Names, types and shapes of inputs and outputs are compared one at a time, so that a manifest with
    billions of layers costs no more than one with too many. The context's length shows in no shape: it is
    compared with the graph's metadata, where an export has written it.
    """
    nodes = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
    for name, element_type, shape in _wanted(manifest):
        node = nodes.get(name)
        if node is None or node.type != element_type or not _fits(node.shape, shape):
            found = f"{node.type} {node.shape}" if node else "missing"
            _refuse(f"the graph's {name} is {found}, and the manifest says {element_type} {shape}")
    beyond = manifest.kv_cache.num_layers
    if {names.past(beyond, "key", "decode"), names.past_blocks(beyond, "key")} & nodes.keys():
        _refuse(f"the graph has more than the {manifest.kv_cache.num_layers} layers of the manifest")
    steps = {node.name for node in session.get_inputs() if not node.name.startswith("past.")}
    known = set(names.PAGED_INPUTS if manifest.lowering == "paged" else names.STEP_INPUTS)
    known |= {name for name, _, _ in _wanted_adapters(manifest.adapters)}
    if unknown := steps - known:
        _refuse(f"the graph has inputs that this version does not fill: {', '.join(sorted(unknown))}")
    _check_metadata(session.get_modelmeta().custom_metadata_map, manifest)


def _wanted(manifest: Manifest) -> Iterator[tuple[str, str, _Shape]]:
    yield names.INPUT_IDS, "tensor(int64)", [1, None]
    yield names.LOGITS, "tensor(float)", [None, manifest.vocabulary_size]
    yield from (
        _wanted_blocks(manifest.kv_cache)
        if manifest.lowering == "paged"
        else _wanted_slots(manifest.kv_cache)
    )
    yield from _wanted_adapters(manifest.adapters)


def _wanted_adapters(room: AdapterRoom | None) -> Iterator[tuple[str, str, _Shape]]:
    if room is None:
        return
    yield names.ADAPTER_ROWS, "tensor(float)", [None, None]
    for index, linear in enumerate(room.linears):
        yield names.adapter_down(index), "tensor(float)", [linear.rows, None]
        yield names.adapter_up(index), "tensor(float)", [None, linear.columns]


def _wanted_blocks(kv: KvCache) -> Iterator[tuple[str, str, _Shape]]:
    yield names.GREEDY, "tensor(int64)", [None]
    yield names.SEQUENCE_ENDS, "tensor(int32)", [None]
    yield names.PAST_LENGTHS, "tensor(int32)", [None]
    yield names.BLOCK_TABLE, "tensor(int32)", [None, None]
    yield names.SLOT_MAPPING, "tensor(int32)", [None]
    yield names.ATTENTION_BOUNDS, "tensor(int32)", [3]
    for layer in range(kv.num_layers):
        for kind in names.KINDS:
            yield (
                names.past_blocks(layer, kind),
                _ORT_TYPES[kv.dtype],
                [None, None, kv.num_heads, kv.head_dim],
            )
            yield names.present_blocks(layer, kind), _ORT_TYPES[kv.dtype], [None] * 4


def _wanted_slots(kv: KvCache) -> Iterator[tuple[str, str, _Shape]]:
    cache: _Shape = [None, kv.num_heads, None, kv.head_dim]
    for layer in range(kv.num_layers):
        for kind in names.KINDS:
            for half in names.HALVES:
                yield names.past(layer, kind, half), _ORT_TYPES[kv.dtype], cache
                # Outputs alias the inputs' memory; the exporter leaves their sizes open.
                yield names.present(layer, kind, half), _ORT_TYPES[kv.dtype], [None] * 4


def _fits(found: Sequence[object], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(w in (None, f) for f, w in zip(found, wanted, strict=True))


def _check_metadata(metadata: dict[str, Any], manifest: Manifest) -> None:
    if names.INTERFACE not in metadata:
        return
    try:
        stated = _Stated.model_validate_json(metadata[names.INTERFACE])
    except ValidationError:
        _refuse(f"the graph's metadata {names.INTERFACE} is damaged")
    if (stated.vocabulary_size, stated.kv_cache) != (manifest.vocabulary_size, manifest.kv_cache):
        _refuse(f"the graph was made for {stated.vocabulary_size} tokens and {stated.kv_cache}")
    if manifest.context_tokens > stated.context_tokens:
        _refuse(
            f"the manifest's context_tokens is {manifest.context_tokens}, and the graph was made for "
            f"{stated.context_tokens}"
        )


def _refuse(message: str) -> NoReturn:
    raise ManifestError(f"{message}: export again")
