"""The chunks of prompts that one step computes beside its decode rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from llm_grpc.engine.groups import ready
from llm_grpc.engine.kv_memory import KvMemory
from llm_grpc.engine.request import Request, slot_of
from llm_grpc.engine.step_plan import MAX_SCORED_ROWS, PrefillChunk, Score


@dataclass(slots=True)
class Prefill:
    """``chunks`` and ``scores`` of a plan; ``last_rows`` are requests whose prompt ends, and in which row."""

    chunks: list[PrefillChunk] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    last_rows: list[tuple[Request, int]] = field(default_factory=list)


def plan_prefill(
    prefilling: Iterable[Request],
    memory: KvMemory,
    num_tokens: int,
    num_decoding: int,
    load: Callable[[Request], None],
) -> Prefill:
    """Chunks of the oldest prompts, ``num_tokens`` together at most, behind ``num_decoding`` rows.

    ``load`` looks for the beginning of one that waits for its first chunk.
    """
    prefill, end = Prefill(), num_decoding
    for request in ready(prefilling):
        if num_tokens <= 0 or len(prefill.chunks) == memory.max_chunks:
            break
        if request.is_untouched:
            load(request)
        most = min(num_tokens, memory.max_chunk_tokens)
        stop = _chunk_end(request, most, MAX_SCORED_ROWS - len(prefill.scores))
        if stop == request.num_computed:
            continue  # others' scores fill the step
        tokens = request.known_ids[request.num_computed : stop]
        prefill.chunks.append(
            PrefillChunk(slot_of(request), request.num_computed, tokens, adapter=request.adapter)
        )
        prefill.scores += _scores(request, stop, end)
        num_tokens, end = num_tokens - len(tokens), end + len(tokens)
        if stop == len(request.known_ids):
            prefill.last_rows.append((request, end - 1))
    return prefill


def _chunk_end(request: Request, most_tokens: int, most_scores: int) -> int:
    """The position behind the request's next chunk."""
    end = min(request.num_computed + most_tokens, len(request.known_ids))
    if (token := request.next_score) is None:
        return end
    first_row = max(token - 1, request.num_computed)
    if first_row + most_scores >= len(request.prompt_ids) - 1:
        return end
    return min(end, first_row + most_scores)


def _scores(request: Request, stop: int, row: int) -> list[Score]:
    """What a chunk up to position ``stop``, whose first token is in packed ``row``, tells of those behind."""
    if (first := request.next_score) is None:
        return []
    num_top = request.params.num_prompt_logprobs or 0
    return [
        Score(request.request_id, row + at - 1 - request.num_computed, request.prompt_ids[at], num_top)
        for at in range(first, min(stop + 1, len(request.prompt_ids)))
    ]
