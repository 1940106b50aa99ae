"""What a contestant's process writes: the record of ``llm-grpc bench`` and a little more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from llm_grpc.bench import record as bench


class RequestRecord(bench.RequestRecord):
    """One request of a work."""

    max_tokens: Annotated[int, Field(ge=1)]
    group: Annotated[int, Field(ge=0)] = 0
    """In the work ``decode``, how many ran together."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.error is None and len(self.token_times_s) != self.max_tokens:
            raise ValueError(f"{len(self.token_times_s)} tokens came where max_tokens is {self.max_tokens}")
        return self


class RunRecord(bench.RunRecord):
    """One work by one contestant."""

    work: str
    requests: Annotated[tuple[RequestRecord, ...], Field(min_length=1)]
    cpu_s: bench.Seconds
    peak_bytes: bench.Count
    versions: dict[str, str]


class BadRecord(Exception):
    """A process ended well and left a record that cannot be used."""


def load_record(path: Path) -> RunRecord:
    """Read a record.

    Raises:
        BadRecord: it is missing, damaged, or a request in it failed.
    """
    try:
        record = RunRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadRecord(f"it left no record: {error.strerror}") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise BadRecord(f"its record is wrong: {where}: {fault['msg']}") from None
    failed = [request for request in record.requests if request.error is not None]
    if failed:
        raise BadRecord(f"{len(failed)} of {len(record.requests)} requests failed: {failed[0].error}")
    return record
