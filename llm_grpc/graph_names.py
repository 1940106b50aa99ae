"""The exported step's inputs and outputs: what export writes and the runtime binds.

Lowering ``slots``, for CPUs:

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

Lowering ``paged``, for NVIDIA GPUs, of which ``input_ids``, ``position_ids`` and ``logit_rows`` are the same:

=================  ==============  ================================================================
name               type, shape     meaning
=================  ==============  =======================================================================
sequence_ends      int32 [B + 1]   packed tokens before each of the step's B sequences, and T
past_lengths       int32 [B]       tokens of each sequence that are cached already
block_table        int32 [B, P]    the blocks of each sequence, in the order of their positions
slot_mapping       int32 [T]       where the keys and values of each token go: block * block_size + place in
                                   the block; -1 for nowhere
attention_bounds   int32 [3]       in the processor's memory: the most tokens of a sequence in the step, the
                                   most that one attends to, and a number not above the largest of these.
                                   Bounds, so that one recorded step serves many; 0 is unknown
past.<layer>.…     [blocks, block_size, heads, head_dim]: the cache, float16 or bfloat16
=================  ==============  =======================================================================

Outputs are ``greedy`` int64 ``[R]``, the most likely tokens, ``logits`` and ``present`` as above. A second
graph, ``blocks.onnx``, or one for each stage, copies block ``source`` int64 ``[1]`` to block ``target`` int64
``[1, 1]`` in all of ``past``. A third one, ``sampler.onnx``, draws tokens from ``logits``.

A model with room for adapters has more inputs, in either lowering; R' is the sum of the ranks in use:

=================  ==============  =======================================================================
name               type, shape     meaning
=================  ==============  =======================================================================
adapter_rows       float32 [T, R'] 1 in the columns of a token's adapter, else 0
adapter.<n>.down   float32 [K, P * R']: of the manifest's n-th adapted linear, whose P parts are side by side
adapter.<n>.up     float32 [P * R', N], zero but where rows and columns are of one part
=================  ==============  =======================================================================

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

SEQUENCE_ENDS, PAST_LENGTHS = "sequence_ends", "past_lengths"
BLOCK_TABLE, SLOT_MAPPING, ATTENTION_BOUNDS = "block_table", "slot_mapping", "attention_bounds"
GREEDY = "greedy"

PAGED_INPUTS = (
    INPUT_IDS,
    POSITION_IDS,
    LOGIT_ROWS,
    SEQUENCE_ENDS,
    PAST_LENGTHS,
    BLOCK_TABLE,
    SLOT_MAPPING,
    ATTENTION_BOUNDS,
)

BLOCKS_GRAPH, SOURCE, TARGET = "blocks.onnx", "source", "target"
"""The file of the graph that copies blocks of a whole model, and its inputs beside the caches."""


def blocks_graph(stage: int, count: int) -> str:
    """The file of the graph that copies blocks of ``stage``, from 0 on, of ``count``."""
    return BLOCKS_GRAPH if count == 1 else f"blocks-{stage + 1}-of-{count}.onnx"


SAMPLER_GRAPH = "sampler.onnx"
TEMPERATURE, TOP_K, TOP_P, UNIFORM = "temperature", "top_k", "top_p", "uniform"
SAMPLER_ROWS = (TEMPERATURE, TOP_K, TOP_P, UNIFORM)
TOKENS, UNDECIDED = "tokens", "undecided"
"""The file of the graph that draws tokens from ``logits``, its other inputs, fp64 ``[R]``, and outputs."""

HALVES = ("decode", "chunk")
KINDS = ("key", "value")


def past(layer: int, kind: str, half: str) -> str:
    """Name of a cache input."""
    return f"past.{layer}.{kind}.{half}"


def present(layer: int, kind: str, half: str) -> str:
    """Name of a cache output."""
    return f"present.{layer}.{kind}.{half}"


def past_blocks(layer: int, kind: str) -> str:
    """Name of a cache input of lowering ``paged``."""
    return f"past.{layer}.{kind}"


def present_blocks(layer: int, kind: str) -> str:
    """Name of a cache output of lowering ``paged``."""
    return f"present.{layer}.{kind}"


def layer_of(name: str) -> int | None:
    """The layer whose cache the input or output ``name`` is; None for others."""
    kind, _, rest = name.partition(".")
    layer = rest.partition(".")[0]
    return int(layer) if kind in {"past", "present"} and layer.isdecimal() else None


ADAPTER_ROWS = "adapter_rows"


def adapter_down(linear: int) -> str:
    """Name of the matrix that adapted linear number ``linear`` multiplies first."""
    return f"adapter.{linear}.down"


def adapter_up(linear: int) -> str:
    """Name of the matrix that it multiplies then."""
    return f"adapter.{linear}.up"


STAGE_VALUE = "stage."
"""What names of values that stages hand on begin with."""


def stage_value(stage: int, number: int) -> str:
    """Name of what ``stage``, from 0 on, writes for later ones to read: ``[…, T, …]``, one size open."""
    return f"{STAGE_VALUE}{stage}.{number}"


INTERFACE = "llm_grpc.interface"
"""Key of the graph's metadata: JSON of the graph's ``vocabulary_size``, ``context_tokens`` and ``kv_cache``
as the manifest words them. It lets the runtime refuse a manifest that states what the graph was not made for
and its shapes do not show."""
