"""What a model directory says of the adapters that its graph takes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

MAX_ADAPTER_RANK = 1024
"""Above it the adapters of a layer are no smaller than its weights."""

_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class AdaptedLinear(BaseModel, frozen=True, extra="forbid", strict=True):
    """A product of the graph that adapters add to: ``[tokens, rows]`` times the matrices of ``parts``, which
    are modules by name and the columns of each, side by side.
    """

    rows: _Count
    parts: Annotated[dict[str, _Count], Field(min_length=1)]

    @property
    def columns(self) -> int:
        """Of all parts."""
        return sum(self.parts.values())


class AdapterRoom(BaseModel, frozen=True, extra="forbid", strict=True):
    """Room for adapters whose ranks are ``max_rank`` together, on each of ``linears``.

    ``base`` identifies the weights that were exported, whatever format they have in the graph.
    """

    max_rank: Annotated[int, Field(ge=1, le=MAX_ADAPTER_RANK)]
    base: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    linears: Annotated[tuple[AdaptedLinear, ...], Field(min_length=1, strict=False)]

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each module that an adapter can change."""
        return {name: (linear.rows, size) for linear in self.linears for name, size in linear.parts.items()}

    @property
    def num_bytes(self) -> int:
        """Of what the graph reads, in fp32, where all the room is used; what was read takes about as much."""
        sizes = (len(linear.parts) * (linear.rows + linear.columns) for linear in self.linears)
        return 4 * self.max_rank * sum(sizes)
