"""The forms that a model's answers are held to: compiled beside the event loop, kept, and copied."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from llm_grpc.cpus import threads_to_use
from llm_grpc.errors import ManifestError
from llm_grpc.manifest import Manifest
from llm_grpc.text.constraint_compiler import Compiled, ConstraintCompiler, field_of
from llm_grpc.text.constraint_state import ConstraintState
from llm_grpc.text.text_request import NewConstraint
from llm_grpc.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

_KEPT = 32
"""Compiled forms that are kept; the one that was used longest ago goes first."""

_STACK_BYTES = 256 * 1024 * 1024
"""Of the compiling thread. The library follows references by recursion, and where the stack ends, so does the
process: 4,000 rules that name each other took more than 8 MiB. Only what is used becomes memory."""


def constraints_for(tokenizer: TextTokenizer, manifest: Manifest) -> Constraints | None:
    """The model's constraints; None where its tokenizer allows none, and the log says why.

    It takes two seconds for a vocabulary of 128,000.
    """
    try:
        compiler = ConstraintCompiler(tokenizer, manifest.vocabulary_size, manifest.eos_token_ids)
    except ManifestError as error:
        log.warning("%s: %s", manifest.name, error)
        return None
    return Constraints(compiler)


class Constraints:
    """Lives on the event loop; one thread compiles, others compute masks.

    Forms are compiled one after the other, so that whoever sends hard ones has no more than one CPU.
    """

    def __init__(self, compiler: ConstraintCompiler) -> None:
        self._compiler = compiler
        self._compiling = _deep_thread("llm-grpc-compile")
        self._masks = ThreadPoolExecutor(threads_to_use().number, "llm-grpc-mask")
        self._kept: OrderedDict[tuple[str, bytes], Future[Compiled]] = OrderedDict()

    async def compile(self, kind: str, text: str) -> NewConstraint:
        """What makes the constraint of a sequence. ``kind`` is the contract's field: json_schema, regex, …;
        or ``TOOL_CALLS``.

        ``text`` is a JSON list for ``choice``, empty for ``json_object``, and for calls of tools a JSON list:
        the ``tool_grammar``, and the field and the schema of each tool's arguments.

        Raises:
            InvalidParameter: the form cannot be used; the message names the place.
        """
        compiled = await asyncio.shield(asyncio.wrap_future(self._compiled(kind, text)))

        def new_constraint() -> ConstraintState:
            matcher, first = compiled.matcher.deep_copy(), compiled.first_mask
            return ConstraintState(matcher, first, self._compiler.end_mask, self._masks, field_of(kind))

        return new_constraint

    def _compiled(self, kind: str, text: str) -> Future[Compiled]:
        """What is kept or under way of this form, else a new one; one that failed is not kept."""
        key = kind, hashlib.sha256(text.encode()).digest()
        future = self._kept.get(key)
        if future is None or (future.done() and future.exception()):
            future = self._kept[key] = self._compiling.submit(self._compiler.compile, kind, text)
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return future


def _deep_thread(name: str) -> ThreadPoolExecutor:
    """One thread with room for deep recursion."""
    executor, before = ThreadPoolExecutor(1, name), threading.stack_size(_STACK_BYTES)
    try:
        executor.submit(int)
    finally:
        threading.stack_size(before)
    return executor
