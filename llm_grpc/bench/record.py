"""What one run measured, as plain data: the form that the records of other servers have too.

Times are seconds since the run began, on one clock of the client.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class RequestRecord(BaseModel):
    """One request that ended, well or not. What was cut off by an interrupt is in no record."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    index: Count
    """Its number in the workload."""

    due_s: Seconds
    """When it should have been sent: its arrival time; in a closed loop the moment its place became free."""

    start_s: Seconds
    """When it was sent."""

    token_times_s: tuple[Seconds, ...]
    """When each generated token reached the client; those of one message share a time."""

    prompt_tokens: Count

    error: str | None = None
    """Status code and reason, or what else went wrong; None for a whole answer."""

    cached_tokens: Count | None = None
    """Prompt tokens that the server did not compute again; None where it does not say."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        times = (self.due_s, self.start_s, *self.token_times_s)
        if any(later < earlier for earlier, later in pairwise(times)):
            raise ValueError("due_s, start_s and token_times_s must not decrease")
        if self.error is None and not self.token_times_s:
            raise ValueError("token_times_s is empty though error is null")
        return self


class RunRecord(BaseModel):
    """One run: a workload at one load. What else a record says is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    requests: tuple[RequestRecord, ...]

    wall_s: Seconds
    """From the run's begin to the end of its last request."""

    cpu_s: Seconds | None = None
    """CPU time that the server used during the run, user and system; None where nobody could tell."""

    peak_bytes: Count | None = None
    """The server's largest resident memory, its start included; None where nobody could tell."""

    client_cpu_s: Seconds | None = None
    """CPU time that the client used during the run."""
