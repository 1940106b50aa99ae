"""The exported step's inputs and outputs: what export writes and the runtime binds.

=================  ==============  =======================================================================
name               type, shape     meaning
=================  ==============  =======================================================================
input_ids          int64 [1, T]    packed tokens: D decode rows, then the chunk's C > 0 tokens; T = D + C
position_ids       int64 [1, T]    the position of each in its sequence
logit_rows         int64 [R]       the packed tokens that need logits
num_decode         int64 [1]       D
decode_end         int64 [1]       E, the tokens that the decode half computes: D, or 1 where D is 0, whose
                                   result is dropped: attention over no rows at all kills the process
decode_seqlens     int32 [E]       tokens already cached in each decode row's slot
decode_total       int32 []        the most tokens that a decode row attends to, its own included
chunk_seqlens      int32 [1]       tokens cached after the chunk, less 1
chunk_total        int32 []        tokens cached after the chunk
past.<layer>.…     [E or 1, heads, capacity, head_dim]: the cache of the decode rows' slots and the chunk's,
                   float32 or int8
=================  ==============  =======================================================================

Outputs are ``logits`` float32 ``[R, vocabulary]`` and ``present.<layer>.…``, bound to the memory of ``past``.
A model in stages is several such graphs: each has the inputs and caches that its nodes read, the last one has
the logits, and ``stage.<writer>.<number>`` is an output of one and an input of later ones.
"""

from __future__ import annotations

INPUT_IDS, POSITION_IDS, LOGIT_ROWS = "input_ids", "position_ids", "logit_rows"
NUM_DECODE, DECODE_END = "num_decode", "decode_end"
DECODE_SEQLENS, DECODE_TOTAL = "decode_seqlens", "decode_total"
CHUNK_SEQLENS, CHUNK_TOTAL = "chunk_seqlens", "chunk_total"
LOGITS = "logits"

STEP_INPUTS = (
    INPUT_IDS,
    POSITION_IDS,
    LOGIT_ROWS,
    NUM_DECODE,
    DECODE_END,
    DECODE_SEQLENS,
    DECODE_TOTAL,
    CHUNK_SEQLENS,
    CHUNK_TOTAL,
)

HALVES = ("decode", "chunk")
KINDS = ("key", "value")


def past(layer: int, kind: str, half: str) -> str:
    """Name of a cache input."""
    return f"past.{layer}.{kind}.{half}"


def present(layer: int, kind: str, half: str) -> str:
    """Name of a cache output."""
    return f"present.{layer}.{kind}.{half}"


def layer_of(name: str) -> int | None:
    """The layer whose cache the input or output ``name`` is; None for others."""
    kind, _, rest = name.partition(".")
    layer = rest.partition(".")[0]
    return int(layer) if kind in {"past", "present"} and layer.isdecimal() else None


STAGE_VALUE = "stage."
"""What names of values that stages hand on begin with."""


def stage_value(stage: int, number: int) -> str:
    """Name of what ``stage``, from 0 on, writes for later ones to read: ``[…, T, …]``, one size open."""
    return f"{STAGE_VALUE}{stage}.{number}"


INTERFACE = "llm_grpc.interface"
"""Key of the graph's metadata: JSON of the graph's ``vocabulary_size``, ``context_tokens`` and ``kv_cache``
as the manifest words them. It lets the runtime refuse a manifest that states what the graph was not made for
and its shapes do not show."""
