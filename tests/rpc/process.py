"""``llm-grpc serve`` as a process, the way an operator starts it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Self

import grpc

READY = re.compile(r"serving llm_grpc\.v1\.LLMService on (\S+)")
METRICS = re.compile(r"metrics on http://(\S+)/metrics")
ADMIN = re.compile(r"admin on (\S+)")
HANG_S = 60.0


class ServerProcess:
    """A server on free loopback ports. Leaving the ``with`` block kills it, if it still runs.

    Without an ``address`` the flags or a file say where the data plane listens.
    """

    def __init__(
        self,
        *flags: str,
        address: str | None = "127.0.0.1:0",
        program: Sequence[str] = ("llm_grpc.cli.main", "serve"),
    ) -> None:
        ports = [f"--{name}=127.0.0.1:0" for name in ("metrics-address", "admin-address")]
        listens = [] if address is None else [f"--address={address}"]
        command = [sys.executable, "-m", *program, *listens, *ports]
        self.process = subprocess.Popen(
            [*command, "--drain-window-s=0", *flags],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.log: list[str] = []
        self._ended = False
        self._logging = threading.Condition()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def wait_ready(self) -> None:
        """Wait for the line that says where it serves; fail with its log if it ends before."""
        self.wait_for(READY)

    def wait_for(self, pattern: re.Pattern[str]) -> None:
        """Wait for a line of its log; fail with the log if it ends before."""
        with self._logging:
            assert self._logging.wait_for(lambda: self._ended or self._matches(pattern), HANG_S), self.log
            assert self._matches(pattern), "".join(self.log)

    @property
    def address(self) -> str:
        """Where the data plane listens."""
        return self._logged(READY)

    @property
    def metrics_address(self) -> str:
        """Where /metrics is."""
        return self._logged(METRICS)

    @property
    def admin_address(self) -> str:
        """Where AdminService listens."""
        return self._logged(ADMIN)

    def channel(self) -> grpc.Channel:
        """A channel to it without retries."""
        return grpc.insecure_channel(self.address, options=[("grpc.enable_retries", 0)])

    def aio_channel(self) -> grpc.aio.Channel:
        """The same for asyncio."""
        return grpc.aio.insecure_channel(self.address, options=[("grpc.enable_retries", 0)])

    def terminate(self) -> None:
        """Ask it to drain."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        code = self.process.wait(HANG_S)
        self._reader.join(HANG_S)
        if self.process.stderr:
            self.process.stderr.close()
        return code

    def _matches(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        return pattern.search("".join(self.log))

    def _logged(self, pattern: re.Pattern[str]) -> str:
        match = self._matches(pattern)
        assert match, f"no line says {pattern.pattern}: {self.log}"
        return match[1]

    def _read_log(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._logging:
                self.log.append(line)
                self._logging.notify_all()
        with self._logging:
            self._ended = True
            self._logging.notify_all()
