"""The process around a server: logging, signals, exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

import uvloop

from llm_grpc.config import ModelSettings, ServerConfig
from llm_grpc.server.app import Server
from llm_grpc.server.runners import MakeRunner, runner_for

log = logging.getLogger(__name__)


def run(
    models: Sequence[ModelSettings], server: ServerConfig, *, make_runner: MakeRunner = runner_for
) -> int:
    """Serve until SIGTERM or SIGINT and drain; a second signal ends the process at once.

    Returns:
        The exit code: 0 after a drain, 1 where the engine broke.

    Raises:
        StartupError: the server cannot start.
    """
    logging.basicConfig(
        level=server.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    return uvloop.run(_serve(lambda: Server(models, server, make_runner=make_runner)))


async def _serve(make_app: Callable[[], Server]) -> int:
    app = make_app()  # gRPC's servers belong to the loop that runs
    asked_to_stop = _on_signals()
    starting = asyncio.ensure_future(app.start())
    await _first(starting, asked_to_stop.wait())
    if not starting.done():
        log.info("stopping before all models were loaded")
        starting.cancel()
        await asyncio.wait([starting])
        await app.drain()
        os._exit(0)  # the thread that loads cannot be interrupted, and the end of the loop would wait for it
    await starting
    await _first(asked_to_stop.wait(), app.broken.wait())
    if app.broken.is_set():
        log.error("the engine broke; exiting")
        await app.close()
        return 1
    await app.drain()
    return 0


def _on_signals() -> asyncio.Event:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()

    def on_signal(number: int) -> None:
        if asked.is_set():
            log.warning("second signal: exiting at once")
            os._exit(128 + number)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return asked


async def _first(*waits: object) -> None:
    """Return when one of ``waits`` is done; the others, but for tasks of the caller's, are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, wait in zip(tasks, waits, strict=True):
        if task is not wait:
            task.cancel()
