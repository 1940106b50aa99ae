from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from llm_grpc.bench.settings import LoadSettings, Output, Settings, Target, WorkloadSettings
from llm_grpc.cli.child_server import child_server, serve_command
from llm_grpc.cli.extras import needs_extra
from llm_grpc.cli.interrupts import INTERRUPTED, interruptible
from llm_grpc.cli.messages import fail
from llm_grpc.cli.server_address import target as address_of
from llm_grpc.errors import BenchError

if TYPE_CHECKING:
    from llm_grpc.bench.report import Report
    from llm_grpc.bench.usage import Meter

INSTALL = "install llm-grpc[bench]"

# Without a default a group of flags would be required.
TARGET, WORKLOAD, LOAD, OUTPUT = Target(), WorkloadSettings(), LoadSettings(), Output()


def bench(
    *serve_flags: str,
    target: Target = TARGET,
    workload: WorkloadSettings = WORKLOAD,
    load: LoadSettings = LOAD,
    output: Output = OUTPUT,
) -> int:
    """Measure a server; return the exit code.

    Parameters
    ----------
    serve_flags
        Flags of the server that --start starts, after `--`.
    """
    settings = Settings(target, workload, load, output)
    if output.plot:
        with needs_extra(INSTALL):  # before the run, not after it
            import llm_grpc.bench.chart  # noqa: F401, PLC0415 - needs the extra
    with interruptible():
        try:
            report = _measured(settings, serve_flags)
        except KeyboardInterrupt:
            return fail("interrupted; nothing was measured", INTERRUPTED)
        _show(report, output)
    if report.interrupted:
        return fail("interrupted; these are the figures until then", INTERRUPTED)
    if not any(run.summary.completed for run in report.runs):
        return fail("no request was answered")
    return 0


def _measured(settings: Settings, serve_flags: tuple[str, ...]) -> Report:
    from llm_grpc.bench.measure import check, measure  # noqa: PLC0415 - `bench --help` needs no gRPC

    check(settings)
    with _server(settings.target, serve_flags) as server:
        return measure(settings, server.address, server.meter, serve_flags if settings.target.start else None)


class _Measured(NamedTuple):
    address: str
    meter: Meter | None


@contextmanager
def _server(target: Target, serve_flags: tuple[str, ...]) -> Iterator[_Measured]:
    """The server that is running, or one that runs for the while."""
    from llm_grpc.bench.usage import metrics_meter, process_meter  # noqa: PLC0415 - as above

    if target.start:
        if target.metrics_address:
            raise BenchError("--metrics-address is for a running server; one of --start is read as a process")
        with child_server(target.start_limit_s, serve_command(serve_flags)) as child:
            yield _Measured(child.address, process_meter(child.pid))
    elif serve_flags:
        raise BenchError(f"{serve_flags[0]} is a flag of a server to start: add --start before the `--`")
    else:
        meter = metrics_meter(target.metrics_address) if target.metrics_address else None
        yield _Measured(address_of(target.address), meter)


def _show(report: Report, output: Output) -> None:
    from rich.console import Console  # noqa: PLC0415 - as above

    from llm_grpc.bench.figures import print_report  # noqa: PLC0415 - as above

    print_report(report, Console())
    try:
        if output.json:
            output.json.write_text(report.model_dump_json() + "\n", encoding="utf-8")
        if output.plot:
            from llm_grpc.bench.chart import save_chart  # noqa: PLC0415 - needs the extra

            save_chart(report, output.plot)
    except OSError as error:
        raise BenchError(f"cannot write {error.filename}: {error.strerror}") from error
