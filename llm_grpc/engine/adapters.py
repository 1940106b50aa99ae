"""Which adapters requests may use: loaded and taken away while the engine runs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from llm_grpc.errors import AdapterExists, AdapterNotFound, EngineFailed, UnsupportedParameter


class AdapterWeights(Protocol):
    """An adapter that was read and suits the model."""

    @property
    def rank(self) -> int:
        """Columns that it takes of the room."""
        ...

    @property
    def digest(self) -> str:
        """What identifies it: ``sha256:`` and 64 hexadecimal digits."""
        ...


class AdapterStore(Protocol):
    """What a runner computes adapters with."""

    @property
    def max_rank(self) -> int:
        """The sum of ranks that there is room for."""
        ...

    def read(self, directory: Path) -> AdapterWeights:
        """Read an adapter directory; in any thread. ManifestError where it is not one of this model."""
        ...

    def arranged(self, chosen: Mapping[int, AdapterWeights]) -> Callable[[], None]:
        """Make what steps read, of adapters by number; in any thread.

        What is returned lets steps use them and no others; it is called by the engine's thread, between two
        steps.
        """
        ...


@runtime_checkable
class _TakesAdapters(Protocol):
    adapters: AdapterStore | None


def store_of(runner: object) -> AdapterStore | None:
    """Where ``runner`` keeps adapters; None where its model takes none."""
    return runner.adapters if isinstance(runner, _TakesAdapters) else None


@dataclass(eq=False, slots=True)
class Adapter:
    """One that was loaded. ``number`` is its own for as long as the engine lives, so that what was computed
    with another one of its name is never taken for its own.
    """

    name: str
    number: int
    weights: AdapterWeights
    on_unused: Callable[[], None]
    num_requests: int = 0
    is_leaving: bool = False
    is_gone: bool = False

    def take(self) -> int:
        """Keep it there until ``give_back``; its number.

        Raises:
            AdapterNotFound: it was taken away in the meantime.
        """
        if self.is_gone:
            raise AdapterNotFound(f"adapter: {self.name!r} was unloaded")
        self.num_requests += 1
        return self.number

    def give_back(self) -> None:
        """One request fewer uses it. What the engine is to forget of that one, it was told before."""
        self.num_requests -= 1
        self.leave()

    def leave(self) -> None:
        """Say that it can go, if it is to and nobody uses it."""
        if self.is_leaving and not self.num_requests and not self.is_gone:
            self.is_gone = True
            self.on_unused()


class Adapters:
    """The adapters of one model, by name. Lives on the event loop; loads and unloads one at a time.

    ``between_steps`` has the engine's thread call a function between two steps, and waits for that.
    """

    def __init__(
        self,
        store: AdapterStore | None = None,
        between_steps: Callable[[Callable[[], None]], Awaitable[None]] | None = None,
    ) -> None:
        self._store, self._between_steps = store, between_steps
        self._named: dict[str, Adapter] = {}
        self._held: dict[int, Adapter] = {}
        self._numbers = itertools.count(1)
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def max_rank(self) -> int:
        """The sum of ranks that the model has room for; 0 where it takes no adapters."""
        return self._store.max_rank if self._store else 0

    @property
    def loaded(self) -> list[Adapter]:
        """Those that requests may name, by name."""
        return [self._named[name] for name in sorted(self._named)]

    def get(self, name: str) -> Adapter | None:
        """The adapter ``name``; None where that is empty.

        Raises:
            UnsupportedParameter: the model takes no adapters.
            AdapterNotFound: there is none of that name.
        """
        if not name:
            return None
        self._require_store("adapter")
        if name not in self._named:
            known = ", ".join(sorted(self._named)) or "none"
            raise AdapterNotFound(f"adapter: there is no {name!r} here; the model has {known}")
        return self._named[name]

    async def load(self, name: str, directory: Path) -> Adapter:
        """Read an adapter and let requests name it.

        Raises:
            UnsupportedParameter: the model takes no adapters, or has no room for this one.
            AdapterExists: the name is taken.
            ManifestError: the directory holds no adapter of this model.
            EngineFailed: the engine does not run.
        """
        store = self._require_store("name")
        async with self._lock:
            if name in self._named:
                raise AdapterExists(f"name: there is an adapter {name!r} already; unload it first")
            weights = await asyncio.to_thread(store.read, directory)
            free = store.max_rank - sum(adapter.weights.rank for adapter in self._held.values())
            if weights.rank > free:
                raise UnsupportedParameter(
                    f"{name!r} has rank {weights.rank}, and {free} of {store.max_rank} are free: unload "
                    "another one, or export the model with a larger --max-adapter-rank"
                )
            adapter = Adapter(name, next(self._numbers), weights, self._free)
            await self._arrange({**self._held, adapter.number: adapter})
            self._named[name] = adapter
        return adapter

    def unload(self, name: str) -> None:
        """Let no new request name it. Its room is free once those that use it have ended.

        Raises:
            AdapterNotFound: there is none of that name.
        """
        adapter = self._named.pop(name, None)
        if adapter is None:
            raise AdapterNotFound(f"name: there is no adapter {name!r} here")
        adapter.is_leaving = True
        adapter.leave()

    def _require_store(self, field: str) -> AdapterStore:
        if self._store is None:
            raise UnsupportedParameter(
                f"{field}: the model was exported without room for adapters (--max-adapter-rank)"
            )
        return self._store

    def _free(self) -> None:
        task = asyncio.ensure_future(self._drop_gone())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drop_gone(self) -> None:
        async with self._lock:
            kept = {number: adapter for number, adapter in self._held.items() if not adapter.is_gone}
            if len(kept) < len(self._held):
                with suppress(EngineFailed):  # then nobody computes with it either
                    await self._arrange(kept)

    async def _arrange(self, held: dict[int, Adapter]) -> None:
        """Let steps use ``held``; those are the ones that there is room for from now on."""
        assert self._store
        assert self._between_steps
        chosen = {number: adapter.weights for number, adapter in held.items()}
        put = await asyncio.to_thread(self._store.arranged, chosen)
        await self._between_steps(put)
        self._held = held
