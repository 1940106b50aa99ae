"""From the text of a form to what llguidance makes of it, within limits that it does not have itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from llm_grpc.config import MAX_CONSTRAINT_BYTES
from llm_grpc.errors import InvalidParameter, ManifestError
from llm_grpc.text.constraint_faults import ConstraintFault, cause_of, grammar_fault, regex_fault
from llm_grpc.text.json_schema import check_schema
from llm_grpc.text.schema_parts import place_of
from llm_grpc.text.tokenizer import TextTokenizer
from llm_grpc.text.tool_grammar import arguments_rule

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # a type, which the module itself lacks

MAX_REGEX_BYTES = 4096
MAX_GRAMMAR_BYTES = 16 * 1024
"""The library's work on an expression of optional parts grows with its length squared: 16 KiB take a second
and 300 MB, 64 KiB took more than 15 s."""

TOOL_CALLS = "tool_calls"
"""The kind of what holds an answer to calls; it is no field of the contract's constraint."""

MAX_BYTES = {"regex": MAX_REGEX_BYTES, "grammar": MAX_GRAMMAR_BYTES}
"""Limits of kinds that have one of their own."""

_MAX_LEXER_STATES = 20_000
_INITIAL_FUEL = 200_000
_STEP_FUEL = 50_000
"""Of one sequence: states of 2 KB at most, what the lexer may do at the beginning (50,000 a millisecond) and
for one mask (14,000 a millisecond). With the library's own limits `(a{1000}){1000}` took 1.1 s and 285 MB."""

_JSON_OPTIONS: JsonCompileOptions = {
    "whitespace_pattern": r" |\r?\n[ \t]{0,64}",
    "json_allowed_escapes": 'nrbtf\\"',
}
"""White space is one space or a line's end and an indent: without a bound a model could write it for ever.
See ``control_characters`` for the escapes."""

_NO_TEXT = "NoExtension"
"""How the library's message begins where nothing may come, and nothing is complete either."""

_STRINGS = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|(?:#|//)[^\n]*')
_OPTIONS = re.compile(r"%json|%llguidance|\btemperature\s*=")


class Compiled(NamedTuple):
    """A form at its beginning: copied for each sequence, never advanced. ``first_mask`` may come first."""

    matcher: LLMatcher
    first_mask: bytes


def field_of(kind: str) -> str:
    """The field of a request that a form of this kind comes from."""
    return "tools" if kind == TOOL_CALLS else f"constraint.{kind}"


class ConstraintCompiler:
    """Compiles forms for one model's vocabulary. It may take seconds, and holds no lock of Python's for that.

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
        except Exception as error:  # the library raises ValueError, and what Rust panics become
            raise ManifestError(f"no constraints for this tokenizer: {error}") from error
        self.end_mask = _bits(eos_token_ids, vocabulary_size)
        self._limits = LLParserLimits(
            max_lexer_states=_MAX_LEXER_STATES,
            initial_lexer_fuel=_INITIAL_FUEL,
            step_lexer_fuel=_STEP_FUEL,
            verbose_errors=False,
        )

    def compile(self, kind: str, text: str) -> Compiled:
        """The form of ``text`` at its beginning; ``kind`` is the field of the contract that has it, or
        ``TOOL_CALLS``.

        Raises:
            InvalidParameter: it cannot be used; the message names the place.
        """
        field = field_of(kind)
        size, limit = len(text.encode()), MAX_BYTES.get(kind, MAX_CONSTRAINT_BYTES)
        if size > limit:
            raise InvalidParameter(field, f"has {size} bytes of UTF-8, and the limit is {limit}")
        try:
            return self._begun(self._matcher(kind, text))
        except ConstraintFault as fault:
            raise InvalidParameter(field, str(fault)) from None

    def _matcher(self, kind: str, text: str) -> LLMatcher:
        match kind:
            case "json_schema" | "json_object":
                return self._json(text or '{"type": "object"}')
            case "regex":
                return self._checked(
                    LLMatcher.grammar_from_regex(text), lambda error: regex_fault(error, text)
                )
            case "choice":
                return self._checked(LLMatcher.grammar_from_lark(_choice(json.loads(text))), grammar_fault)
            case "grammar":
                _refuse_options(text)
                return self._checked(LLMatcher.grammar_from_lark(text), grammar_fault)
            case _ if kind == TOOL_CALLS:
                return self._checked(LLMatcher.grammar_from_lark(self._calls(text)), grammar_fault)
        raise ValueError(f"this is a bug: no constraint is {kind!r}")

    def _json(self, text: str) -> LLMatcher:
        self._check_json(text)
        return self._checked(_json_grammar(text), grammar_fault)

    def _check_json(self, text: str) -> None:
        """Raise ConstraintFault where a schema cannot be used."""
        schema = check_schema(text)
        if error := self._error(_json_grammar(text)):
            place = place_of(schema, lambda part: self._error(_json_grammar(part)), error)
            raise ConstraintFault(f"at {place}: {cause_of(error)}")

    def _calls(self, text: str) -> str:
        """The grammar of calls, which comes without the arguments' rules but with the schemas of them."""
        grammar, tools = json.loads(text)
        for at, (field, schema) in enumerate(tools):
            try:
                self._check_json(json.dumps(schema))
            except ConstraintFault as fault:
                raise InvalidParameter(field, str(fault)) from None
            grammar += f"{arguments_rule(at)}: %json {json.dumps({**schema, 'x-guidance': _JSON_OPTIONS})}\n"
        return str(grammar)

    def _checked(self, grammar: str, fault: Callable[[str], ConstraintFault]) -> LLMatcher:
        if error := self._error(grammar):
            raise fault(error)
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)

    def _error(self, grammar: str) -> str:
        """What is wrong with a grammar; the library warns of what it would pass over."""
        _, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer, limits=self._limits)
        return messages[0] if messages else ""

    def _begun(self, matcher: LLMatcher) -> Compiled:
        mask: bytes = b"" if matcher.is_error() else matcher.compute_bitmask()[: len(self.end_mask)]
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
    return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)


def _choice(choices: Sequence[str]) -> str:
    """A terminal, not a rule: one place in the grammar, however many they are."""
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice) for choice in choices)


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
