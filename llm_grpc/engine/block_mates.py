"""What a request can have of a block that is not full from another one of its group."""

from __future__ import annotations

from collections.abc import Sequence

from llm_grpc.engine.block_table import BlockTable
from llm_grpc.engine.request import Request


def longest_tail(request: Request, table: BlockTable, mates: Sequence[Request]) -> tuple[Request | None, int]:
    """Who has computed most of what comes behind the full blocks of ``request``, and the place where it ends.

    Nobody, where none has more than ``table`` already.
    """
    begin = table.num_full * table.block_size
    most = min(len(request.findable_ids) - 1, begin + table.block_size - 1)
    best, end = None, table.num_computed
    for mate in mates:
        if end == most:
            break
        stop = min(most, mate.num_computed, len(mate.prompt_ids))
        if stop > end and _begins_alike(request.known_ids, mate.prompt_ids, end + 1):
            best, end = mate, _common_end(request.known_ids, mate.prompt_ids, end + 1, stop)
    return best, end


def _begins_alike(a: Sequence[int], b: Sequence[int], size: int) -> bool:
    """Whether the first ``size`` tokens are equal; where they are not, the last one mostly shows it."""
    return a[size - 1] == b[size - 1] and (a is b or list(a[:size]) == list(b[:size]))


def _common_end(a: Sequence[int], b: Sequence[int], low: int, high: int) -> int:
    """How far up to ``high`` tokens are equal that are up to ``low``."""
    return next((at for at in range(low, high) if a[at] != b[at]), high)
