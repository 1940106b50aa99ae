"""Samples of what the linear layers of a model multiply."""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class Rows:
    """While it is entered, takes rows of the inputs of every ``nn.Linear`` and ``Conv1D`` of ``model``.

    ``num_rows`` are taken in all. The output head is run for the last token alone, after its rows are taken.
    """

    def __init__(self, model: PreTrainedModel, num_rows: int, seed: int = 0) -> None:
        self._model = model
        self._num_rows = num_rows
        self._seed = seed
        self._parts: dict[str, _Part] = {}
        self._hooks: list[Any] = []
        self._tokens = 0
        self._places = torch.empty(0, dtype=torch.int64)
        self._last: tuple[torch.Tensor, _Part] | None = None

    def __enter__(self) -> Self:
        for name, module in self._layers():
            hook = partial(self._see, f"{name}.weight")
            self._hooks.append(module.register_forward_pre_hook(hook))
        head = self._model.get_output_embeddings()
        self._hooks.append(head.register_forward_pre_hook(lambda _, args: (args[0][:, -1:],)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def begin(self, num_tokens: int, places: NDArray[np.int64]) -> None:
        """The next run has ``num_tokens`` tokens; rows are taken at ``places``."""
        self._tokens, self._places = num_tokens, torch.from_numpy(places)
        self._last = None

    def rows(self) -> dict[str, NDArray[np.float32]]:
        """The rows ``[n, K]`` by the weight's name; layers called with one tensor have one array."""
        arrays = {id(part): part.rows() for part in self._parts.values()}
        found = {name: arrays[id(part)] for name, part in self._parts.items()}
        return {
            f"{name}.weight": found.get(f"{name}.weight", np.empty((0, _width(module)), np.float32))
            for name, module in self._layers()
        }

    def _layers(self) -> list[tuple[str, torch.nn.Module]]:
        modules = self._model.named_modules()
        return [(name, module) for name, module in modules if isinstance(module, torch.nn.Linear | Conv1D)]

    def _see(self, name: str, _: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Take the rows of one input, unless the layer before was called with it and has them."""
        x = args[0]
        if name not in self._parts:
            before, part = self._last or (None, None)
            self._parts[name] = part if part and x is before else _Part(name, int(x.shape[-1]))
        part = self._parts[name]
        # A layer that shares the rows of another leaves them to that one, in every run.
        if part.owner == name:
            self._add(part, x.reshape(-1, x.shape[-1]))
            self._last = x, part

    def _add(self, part: _Part, inputs: torch.Tensor) -> None:
        is_whole = len(inputs) == self._tokens
        places = self._places if is_whole else self._drawn(len(inputs))
        part.add(inputs[places], self._num_rows if is_whole else 2 * len(places))

    def _drawn(self, count: int) -> torch.Tensor:
        """Places among ``count`` tokens that an expert got, in the window's proportion, one at least.

        None where the window has none. Equal counts get equal places: the matrices of one expert have rows of
        the same tokens.
        """
        wanted = min(count, -(-count * len(self._places) // self._tokens))
        random = np.random.Generator(np.random.PCG64([self._seed, count]))
        return torch.from_numpy(np.sort(random.choice(count, wanted, replace=False)))


class _Part:
    """Rows that grow in one block: many small ones between a run's large tensors would break up the heap."""

    def __init__(self, owner: str, width: int) -> None:
        self.owner = owner
        self._block = torch.empty(0, width)
        self._used = 0

    def add(self, rows: torch.Tensor, capacity: int) -> None:
        """Append ``rows [n, K]``; a block that is too small makes room for ``capacity`` or twice its own."""
        used = self._used + len(rows)
        if used > len(self._block):
            block = torch.empty(max(used, capacity, 2 * len(self._block)), rows.shape[1])
            block[: self._used] = self._block[: self._used]
            self._block = block
        self._block[self._used : used] = rows
        self._used = used

    def rows(self) -> NDArray[np.float32]:
        """All of them, ``[n, K]``, not copied."""
        found: NDArray[np.float32] = self._block[: self._used].numpy()
        return found


def _width(module: torch.nn.Module) -> int:
    return int(module.weight.shape[1 if isinstance(module, torch.nn.Linear) else 0])
