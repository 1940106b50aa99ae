"""What a request can have of a block that is not full from another one of its group."""

from __future__ import annotations

from collections.abc import Iterable

from llm_grpc.engine.block_table import BlockTable
from llm_grpc.engine.request import Request


def longest_tail(request: Request, table: BlockTable, mates: Iterable[Request]) -> tuple[Request | None, int]:
    """Who has computed most of what comes behind the full blocks of ``request``, and the place where it ends.

    Nobody, where none has more than ``table`` already.
    """
    most = min(request.max_found, (table.num_full + 1) * table.block_size - 1)
    best, end = None, table.num_computed
    for mate in mates:
        if end == most:
            break
        stop = min(most, mate.num_computed)
        if stop > end and (stop := min(stop, request.num_shared(mate))) > end:
            best, end = mate, stop
    return best, end
