"""From a form that a request asks for to what holds its sequences to it; llguidance does the work."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from llm_grpc.config import MAX_CONSTRAINT_BYTES
from llm_grpc.cpus import threads_to_use
from llm_grpc.errors import InvalidParameter, ManifestError
from llm_grpc.manifest import Manifest
from llm_grpc.text.constraint_faults import ConstraintFault, cause_of, grammar_fault, regex_fault
from llm_grpc.text.constraint_state import ConstraintState
from llm_grpc.text.json_schema import check_schema, place_of
from llm_grpc.text.text_request import NewConstraint
from llm_grpc.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

MAX_REGEX_BYTES = 4096
MAX_GRAMMAR_BYTES = 16 * 1024
"""The library's work on an expression of optional parts grows with its length squared: 16 KiB take a second
and 300 MB, 64 KiB took more than 15 s."""

_LIMITS = {"regex": MAX_REGEX_BYTES, "grammar": MAX_GRAMMAR_BYTES}

_MAX_LEXER_STATES = 20_000
"""Of one sequence, 2 KB each at most; the library's own limit let one take 285 MB."""

_CACHED = 32
"""Compiled forms that are kept; the one that was used longest ago goes first."""

_STACK_BYTES = 256 * 1024 * 1024
"""Of the compiling thread. The library follows references by recursion, and where the stack ends, so does the
process: 2,000 rules that name each other took more than 8 MiB. Only what is used becomes memory."""

_JSON_OPTIONS = {"whitespace_pattern": r" |\r?\n[ \t]{0,64}", "json_allowed_escapes": 'nrbtf\\"'}
"""White space is one space or a line's end and an indent: without a bound a model could write it for ever.
See ``control_characters`` for the escapes."""

_NO_TEXT = "NoExtension"
"""How the library's message begins where nothing may come, and nothing is complete either."""

_STRINGS = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|(?:#|//)[^\n]*')
_OPTIONS = re.compile(r"%json|%llguidance|\btemperature\s*=")


def constraints_for(tokenizer: TextTokenizer, manifest: Manifest) -> Constraints | None:
    """The model's constraints; None where its tokenizer allows none, and the log says why. Takes a second."""
    try:
        return Constraints(tokenizer, manifest.vocabulary_size, manifest.eos_token_ids)
    except ManifestError as error:
        log.warning("%s: %s", manifest.name, error)
        return None


class Compiled(NamedTuple):
    """A form at its beginning: copied for each sequence, never advanced. ``first_mask`` may come first."""

    matcher: LLMatcher
    first_mask: bytes


class Constraints:
    """Compiles forms for one model, and computes its masks. Lives on the event loop.

    Forms are compiled by one thread beside the loop, one after the other, so that whoever sends hard ones
    has no more than one CPU; what is compiled is kept.

    Raises:
        ManifestError: the library cannot read the tokenizer.
    """

    def __init__(
        self, tokenizer: TextTokenizer, vocabulary_size: int, eos_token_ids: Collection[int]
    ) -> None:
        try:
            self._tokenizer = LLTokenizer(
                tokenizer.raw.to_str(), n_vocab=vocabulary_size, eos_token=list(eos_token_ids)
            )
        except Exception as error:  # the library raises ValueError and what Rust panics become
            raise ManifestError(f"no constraints for this tokenizer: {error}") from error
        self._end_mask = _bits(eos_token_ids, vocabulary_size)
        self._limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
        self._compiler = _deep_thread("llm-grpc-compile")
        self._masks = ThreadPoolExecutor(threads_to_use().number, "llm-grpc-mask")
        self._kept: OrderedDict[tuple[str, bytes], Future[Compiled]] = OrderedDict()

    async def compile(self, kind: str, text: str) -> NewConstraint:
        """What makes the constraint of a sequence. ``kind`` is the field's name: json_schema, regex, ….

        ``text`` is a JSON list for ``choice``, and empty for ``json_object``.

        Raises:
            InvalidParameter: the form cannot be used; the message names the place.
        """
        field = f"constraint.{kind}"
        _check_size(field, text, _LIMITS.get(kind, MAX_CONSTRAINT_BYTES))
        compiled = await asyncio.shield(asyncio.wrap_future(self._compiled(kind, text)))

        def new_constraint() -> ConstraintState:
            matcher = compiled.matcher.deep_copy()
            return ConstraintState(matcher, compiled.first_mask, self._end_mask, self._masks, field)

        return new_constraint

    def _compiled(self, kind: str, text: str) -> Future[Compiled]:
        key = kind, hashlib.sha256(text.encode()).digest()
        future = self._kept.get(key)
        if future is None or (future.done() and future.exception()):
            future = self._kept[key] = self._compiler.submit(self._compile, kind, text)
        self._kept.move_to_end(key)
        while len(self._kept) > _CACHED:
            self._kept.popitem(last=False)
        return future

    def _compile(self, kind: str, text: str) -> Compiled:
        try:
            return self._begun(self._matcher(kind, text))
        except ConstraintFault as fault:
            raise InvalidParameter(f"constraint.{kind}", str(fault)) from None

    def _matcher(self, kind: str, text: str) -> LLMatcher:
        match kind:
            case "json_schema" | "json_object":
                return self._json(text or '{"type": "object"}')
            case "regex":
                return self._checked(LLMatcher.grammar_from_regex(text), lambda error: regex_fault(error, text))
            case "choice":
                return self._checked(LLMatcher.grammar_from_lark(_choice(json.loads(text))), grammar_fault)
            case "grammar":
                _refuse_options(text)
                return self._checked(LLMatcher.grammar_from_lark(text), grammar_fault)
        raise ValueError(f"this is a bug: no constraint is {kind!r}")

    def _json(self, text: str) -> LLMatcher:
        schema = check_schema(text)

        def fault(error: str) -> ConstraintFault:
            place = place_of(schema, lambda part: self._error(_json_grammar(part)), error)
            return ConstraintFault(f"at {place}: {cause_of(error)}")

        return self._checked(_json_grammar(text), fault)

    def _checked(self, grammar: str, fault: Any) -> LLMatcher:
        if error := self._error(grammar):
            raise fault(error)
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)

    def _error(self, grammar: str) -> str:
        """What is wrong with a grammar; the library warns of what it would pass over."""
        _, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer, limits=self._limits)
        return messages[0] if messages else ""

    def _begun(self, matcher: LLMatcher) -> Compiled:
        mask: bytes = b"" if matcher.is_error() else matcher.compute_bitmask()[: len(self._end_mask)]
        error = matcher.get_error()
        if error.startswith(_NO_TEXT) or not (error or any(mask)):
            raise ConstraintFault("no text has this form")
        if error:
            raise ConstraintFault(f"is too complex: {cause_of(error)}")
        return Compiled(matcher, mask)


def _json_grammar(schema: str) -> str:
    if schema.strip() == "true":
        schema = "{}"
    if schema.strip() == "false":
        return LLMatcher.grammar_from_json_schema(schema)
    grammar: str = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)
    return grammar


def _choice(choices: Sequence[str]) -> str:
    """A terminal, not a rule: one place in the grammar, however many they are."""
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice) for choice in choices)


def _check_size(field: str, text: str, limit: int) -> None:
    size = len(text.encode())
    if size > limit:
        raise InvalidParameter(field, f"has {size} bytes of UTF-8, and the limit is {limit}")


def _refuse_options(grammar: str) -> None:
    """Refuse what a grammar may hold beside rules, and that would escape the checks or be passed over."""
    bare = _STRINGS.sub(lambda found: " " * len(found[0]), grammar)
    found = _OPTIONS.search(bare) or re.search("%json", grammar)
    if found:
        line, start = bare.count("\n", 0, found.start()) + 1, bare.rfind("\n", 0, found.start())
        place = f"line {line}, column {found.start() - start}"
        raise ConstraintFault(f"{place}: {found[0].rstrip(' =')} is not served in a grammar")


def _bits(tokens: Collection[int], vocabulary_size: int) -> bytes:
    bits = bytearray(-(-vocabulary_size // 32) * 4)
    for token in tokens:
        bits[token >> 3] |= 1 << (token & 7)
    return bytes(bits)


def _deep_thread(name: str) -> ThreadPoolExecutor:
    """One thread with room for deep recursion."""
    executor, before = ThreadPoolExecutor(1, name), threading.stack_size(_STACK_BYTES)
    try:
        executor.submit(int)
    finally:
        threading.stack_size(before)
    return executor
