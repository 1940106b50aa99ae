"""Records that hypothesis makes up."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import strategies as st

from llm_grpc.bench.record import RequestRecord, RunRecord

SECONDS = st.floats(0, 1000, allow_nan=False)
ERRORS = st.sampled_from(["UNAVAILABLE", "RESOURCE_EXHAUSTED QUEUE_FULL"])


@st.composite
def requests(draw: st.DrawFn) -> RequestRecord:
    """A request that was answered, or one that failed after any number of tokens."""
    error = draw(st.none() | ERRORS)
    steps = draw(st.lists(SECONDS, min_size=0 if error else 1, max_size=20))
    due, start, *times = accumulate([draw(SECONDS), draw(SECONDS), *steps])
    return RequestRecord(
        index=0,
        due_s=due,
        start_s=start,
        token_times_s=tuple(times),
        prompt_tokens=draw(st.integers(1, 100)),
        error=error,
        cached_tokens=draw(st.none() | st.integers(0, 100)),
    )


RUNS = st.builds(
    RunRecord,
    requests=st.lists(requests(), max_size=12).map(tuple),
    wall_s=st.floats(0.001, 1000),
    cpu_s=st.none() | SECONDS,
    peak_bytes=st.none() | st.integers(0, 2**40),
    client_cpu_s=SECONDS,
)
