"""Forms: whatever tokens come of those that may, the text has the form; and what is refused says where."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future
from itertools import pairwise, product
from typing import Any, cast

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.config import MAX_CONSTRAINT_BYTES
from llm_grpc.errors import InvalidParameter, ManifestError
from llm_grpc.text.constraint_compiler import MAX_BYTES, ConstraintCompiler
from llm_grpc.text.constraint_state import ConstraintState
from llm_grpc.text.constraints import Constraints
from llm_grpc.text.text_request import NewConstraint, TextConstraint
from llm_grpc.text.tokenizer import TextTokenizer
from tests.unit.small_tokenizers import BOS, EOS, byte_fallback, byte_level, decode, metaspace, token_id


def constraints_of(tokenizer: TextTokenizer, vocabulary_size: int, eos_token_ids: list[int]) -> Constraints:
    return Constraints(ConstraintCompiler(tokenizer, vocabulary_size, eos_token_ids))


SMALL = byte_level()
END = token_id(SMALL, EOS)
BEGIN = token_id(SMALL, BOS)
VOCABULARY = SMALL.raw.get_vocab_size()
CONSTRAINTS = constraints_of(SMALL, VOCABULARY, [END])
MOST_TOKENS = 2000
CLOSING = {token_id(SMALL, text) for text in ('"', "}", "]")}


def compiled(kind: str, text: str, constraints: Constraints = CONSTRAINTS) -> NewConstraint:
    """Without an event loop: hypothesis runs tests that are no coroutines."""
    return asyncio.run(constraints.compile(kind, text))


def allowed(constraint: TextConstraint) -> list[int]:
    """The tokens that may come next."""
    words = constraint.start().wait()
    return [32 * at + bit for at, word in enumerate(words) for bit in range(32) if word >> bit & 1]


def written(constraint: TextConstraint, seed: int, eos: Collection[int] = (END,)) -> list[int]:
    """Tokens drawn from those that may come, what closes something more often, until the text ends."""
    rng, tokens = random.Random(seed), list[int]()
    while not constraint.is_complete:
        choices = allowed(constraint)
        assert choices
        assert len(tokens) < MOST_TOKENS, "the form should have been small"
        closing = [token for token in choices if token in CLOSING or token in eos]
        token = rng.choice(closing if closing and rng.random() < 0.5 else choices)
        constraint.advance(token)
        if token not in eos:
            tokens.append(token)
    constraint.check()
    return tokens


names = st.text('ab"\\é\n😀', min_size=1, max_size=3)
leaves: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "boolean"]}]),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-2000, 2000),
        st.integers(0, 2000),
    ),
    st.builds(
        lambda most: {"type": "integer", "minimum": -most, "exclusiveMaximum": most, "multipleOf": 3},
        st.integers(3, 99),
    ),
    st.builds(lambda low: {"type": "number", "minimum": low, "maximum": low + 8}, st.integers(-20, 20)),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 4),
        st.integers(0, 4),
    ),
    st.sampled_from(["^a+b?$", "^[a-z]{2,4}$", "^(é|😀|中){1,3}$", "^\\d\\w$", '^["\\\\\\n]{2}$']).map(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 6}
    ),
    st.sampled_from(["date", "uuid", "ipv4", "time"]).map(lambda name: {"type": "string", "format": name}),
    st.lists(
        st.one_of(names, st.integers(-9, 9), st.booleans(), st.none(), st.lists(names, max_size=2)),
        min_size=1,
        max_size=4,
    ).map(lambda values: {"enum": values}),
    st.dictionaries(names, st.integers(0, 9), max_size=2).map(lambda value: {"const": value}),
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    @st.composite
    def one(draw: st.DrawFn) -> dict[str, Any]:
        properties = draw(st.dictionaries(names, inner, max_size=3))
        required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
        schema = {"type": "object", "properties": properties, "required": required}
        if len(required) < len(properties):  # the library counts properties where all named ones are required
            return {**schema, "additionalProperties": False}
        extra = draw(st.sampled_from([False, {"type": "boolean"}, {"type": "null"}]))
        return {**schema, "additionalProperties": extra, "maxProperties": len(properties) + 2}

    return one()


def arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda items, prefix, low, more: {
            "type": "array",
            "items": items,
            "prefixItems": prefix,
            "minItems": low,
            "maxItems": low + more,
        },
        inner,
        st.lists(inner, max_size=2),
        st.integers(0, 2),
        st.integers(0, 2),
    )


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        objects(inner),
        arrays(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda any_of: {"anyOf": any_of}),
    ),
    max_leaves=5,
)


@given(schemas, st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_what_a_schema_lets_come_is_valid_by_it(schema: Any, seed: int) -> None:
    new = compiled("json_schema", json.dumps(schema))
    text = decode(SMALL, written(new(), seed))
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


REGEXES = [
    "[a-z]{1,8}",
    "(cat|the cat|mat)?",
    "[0-9]{2}-[0-9]{2}",
    "(é|😀|中文){1,4}",
    "a*b{2,3}[^a-z\n]?",
    r"([0-9A-Z_]{1,3} ){0,4}\.",
]


@given(st.sampled_from(REGEXES), st.integers(0, 2**32))
@settings(deadline=None)
def test_what_an_expression_lets_come_matches_it(regex: str, seed: int) -> None:
    text = decode(SMALL, written(compiled("regex", regex)(), seed))
    assert re.fullmatch(regex, text)


@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5), st.integers(0, 2**32))
@settings(deadline=None)
def test_what_a_choice_lets_come_is_one_of_it(choices: list[str], seed: int) -> None:
    assert decode(SMALL, written(compiled("choice", json.dumps(choices))(), seed)) in choices


def test_a_choice_that_begins_another_can_be_chosen_and_so_can_the_other() -> None:
    new = compiled("choice", json.dumps(["the", "the cat", "the cat sat"]))
    found = {decode(SMALL, written(new(), seed)) for seed in range(60)}
    assert found == {"the", "the cat", "the cat sat"}


GRAMMAR = """
start: sum
sum: term (("+" | "-") term)*
term: NUMBER | "(" sum ")"
NUMBER: /[0-9]{1,3}/
"""


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_what_a_grammar_lets_come_is_of_its_language(seed: int) -> None:
    closing = {token_id(SMALL, ")"), *CLOSING}
    constraint, rng, tokens = compiled("grammar", GRAMMAR)(), random.Random(seed), list[int]()
    while END not in (choices := allowed(constraint)) or len(tokens) < 20:
        ends = [token for token in choices if token in closing]
        token = rng.choice(ends if ends and len(tokens) > 20 else [each for each in choices if each != END])
        constraint.advance(token)
        tokens.append(token)
    text = decode(SMALL, tokens)
    assert eval(re.sub(r"\b0+(?=[0-9])", "", text)) is not None  # Python's own grammar holds this one


@pytest.mark.parametrize("seed", range(8))
def test_a_tokenizer_of_byte_tokens_writes_characters_of_several(seed: int) -> None:
    fallback = byte_fallback()
    vocabulary = fallback.raw.get_vocab_size()
    constraints = constraints_of(fallback, vocabulary + 40, [0])
    tokens = written(compiled("regex", "(é|😀| cat|中){2,5}", constraints)(), seed, [0])
    assert max(tokens) < vocabulary
    assert re.fullmatch("(é|😀| cat|中){2,5}", decode(fallback, [token_id(fallback, "a"), *tokens])[1:])


def test_each_end_of_sequence_token_may_end_what_is_complete_and_none_what_is_not() -> None:
    both = constraints_of(SMALL, VOCABULARY, [BEGIN, END])
    for end in (BEGIN, END):
        constraint = compiled("choice", '["s", "st"]', both)()
        assert allowed(constraint)[0] > max(BEGIN, END)
        constraint.advance(token_id(SMALL, "s"))
        assert allowed(constraint) == [BEGIN, END, token_id(SMALL, "t")]
        assert not constraint.is_complete
        constraint.advance(end)
        assert constraint.is_complete


def test_special_tokens_and_those_that_only_the_model_has_never_come() -> None:
    constraints = constraints_of(SMALL, VOCABULARY + 77, [END])
    mask = compiled("regex", "(?s:.*)", constraints)().start().wait()
    assert mask.format == "I"
    assert len(mask) == -(-(VOCABULARY + 77) // 32)
    may_come = allowed(compiled("regex", "(?s:.*)", constraints)())
    assert BEGIN not in may_come
    assert max(may_come) < VOCABULARY


def test_a_tokenizer_whose_tokens_are_no_bytes_takes_no_constraint() -> None:
    with pytest.raises(ManifestError, match="no constraints for this tokenizer"):
        ConstraintCompiler(metaspace(), 100, [0])


def test_no_token_may_follow_what_is_complete_but_an_end() -> None:
    constraint = compiled("choice", '["s"]')()
    constraint.advance(token_id(SMALL, "s"))
    assert constraint.is_complete
    assert allowed(constraint) == [END]


def test_sequences_of_one_form_do_not_touch_each_other() -> None:
    new = compiled("choice", '["s", "t"]')
    one, other = new(), new()
    one.advance(token_id(SMALL, "s"))
    assert not other.is_complete
    assert allowed(other) == sorted([token_id(SMALL, "s"), token_id(SMALL, "t")])


def test_a_token_that_may_not_come_is_a_bug() -> None:
    constraint = compiled("choice", '["s"]')()
    with pytest.raises(ValueError, match="this is a bug: token"):
        constraint.advance(token_id(SMALL, "t"))


def test_starting_twice_at_one_place_is_one_mask() -> None:
    constraint = compiled("choice", '["ss"]')()
    constraint.advance(token_id(SMALL, "s"))
    assert constraint.start().wait() == constraint.start().wait()
    constraint.advance(token_id(SMALL, "s"))
    assert constraint.is_complete


class ByHand(Executor):
    """Does what it was given when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        self.calls.append(lambda: future.set_result(function(*args, **kwargs)))
        return future


def test_beginning_a_mask_does_not_compute_it() -> None:
    by_hand = ByHand()
    state = cast(ConstraintState, compiled("choice", '["st"]')())
    state._executor = by_hand
    state.advance(token_id(SMALL, "s"))
    mask = state.start()
    assert len(by_hand.calls) == 1
    by_hand.calls[0]()
    assert mask.wait()[token_id(SMALL, "t") // 32] >> token_id(SMALL, "t") % 32 & 1


def test_a_form_that_is_too_complex_in_the_end_ends_its_own_text_and_says_so() -> None:
    constraint = compiled("regex", "s{1000000}")()
    for _ in range(3):
        if not constraint.is_complete:
            constraint.advance(allowed(constraint)[-1])
    assert constraint.is_complete
    assert allowed(constraint) == [END]
    with pytest.raises(
        InvalidParameter, match=r"constraint.regex: is too complex after \d tokens: .*too many"
    ):
        constraint.check()


def test_the_same_form_is_compiled_once_and_again_after_a_fault() -> None:
    constraints = constraints_of(SMALL, VOCABULARY, [END])

    async def two() -> tuple[Any, Any]:
        await asyncio.gather(*(constraints.compile("regex", "a+") for _ in range(5)))
        first = constraints._compiled("regex", "a+")
        return first, constraints._compiled("regex", "a+")

    first, second = asyncio.run(two())
    assert first is second
    for _ in range(2):
        with pytest.raises(InvalidParameter):
            compiled("regex", "(", constraints)
    for number in range(100):
        compiled("choice", json.dumps([str(number)]), constraints)
    assert len(constraints._kept) == 32


D7 = "http://json-schema.org/draft-07/schema#"
FAULTS = [
    ("json_schema", '{"type":', "line 1, column 9: Expecting value"),
    ("json_schema", '{\n "type": 3,\n}', "line 3, column 1: Expecting property name"),
    ("json_schema", '{"type": "a", "type": "b"}', 'the key "type" comes twice in one object'),
    ("json_schema", "NaN", "NaN is no JSON number"),
    ("json_schema", "3", "at #: a schema must be an object or a boolean"),
    ("json_schema", "false", "at #: Unsatisfiable schema: schema is false"),
    ("json_schema", "[" * 60_000, "nested too deeply"),
    ("json_schema", '{"maximum": ' + "9" * 5000 + "}", "a number has thousands of digits"),
    ("json_schema", '{"type": "strin"}', "at #: Invalid type: strin"),
    (
        "json_schema",
        {"properties": {"a/b": {"items": {"pattern": "("}}}},
        "at #/properties/a~1b/items: regular",
    ),
    (
        "json_schema",
        {"properties": {"a": {"nullable": True}}},
        "at #/properties/a/nullable: this server does not know",
    ),
    ("json_schema", {"x-guidance": {"lenient": True}}, "at #/x-guidance: this server does not know"),
    ("json_schema", {"anyOf": [{}, {"not": {}}]}, "at #/anyOf/1/not: this server does not know"),
    ("json_schema", {"items": {"uniqueItems": True}}, "at #/items/uniqueItems: this server does not know"),
    ("json_schema", {"$schema": D7, "prefixItems": []}, "at #/prefixItems: the schema's draft does not know"),
    ("json_schema", {"$schema": "x"}, 'at #/$schema: "x" is none of the drafts'),
    ("json_schema", {"items": [{}]}, "at #/items: must be a schema"),
    ("json_schema", {"properties": []}, "at #/properties: must be an object"),
    ("json_schema", {"anyOf": {}}, "at #/anyOf: must be an array"),
    ("json_schema", {"items": {"format": "zork"}}, "at #/items: Unknown format: zork"),
    ("json_schema", {"$ref": "#/$defs/x"}, "at #: Pointer '/$defs/x' does not exist"),
    ("json_schema", {"$ref": "http://localhost/x"}, "at #: Resource 'http://localhost/x' is not present"),
    ("json_schema", {"$ref": "#"}, "no text has this form"),
    (
        "json_schema",
        {"items": {"type": "integer", "minimum": 3, "maximum": 2}, "minItems": 1, "type": "array"},
        "at #",
    ),
    (
        "json_schema",
        {"oneOf": [{"type": "string"}, {"minLength": 1}]},
        "at #: oneOf constraints are not supported",
    ),
    ("json_schema", {"minProperties": 2}, "at #/minProperties: is 2, and the limit is 1"),
    ("json_schema", {"const": "\x01"}, "at #/const: has a control character"),
    ("json_schema", {"properties": {"\x7f": {}}}, "at #/properties: has a control character"),
    ("json_schema", {"pattern": r"^[\v]a$"}, "at #/pattern: has a control character"),
    (
        "json_schema",
        {"pattern": "a" * 5000},
        "the regular expressions have 5000 bytes together, and the limit is 4096",
    ),
    ("json_schema", {"multipleOf": 99991}, "the least common multiple of all multipleOf is 99991"),
    ("json_schema", '{"multipleOf": 1e-999999999}', "at #/multipleOf: is 1E-999999999"),
    ("json_schema", {"title": "x" * 70_000}, "bytes of UTF-8, and the limit is 65536"),
    ("regex", "(", "column 1: regular expression: unclosed group"),
    ("regex", "a(?=b)", "column 2: regular expression: look-around"),
    ("regex", r"\bfoo", "lookarounds not supported"),
    ("regex", "[a-z&&[^a-z]]", "no text has this form"),
    ("regex", "a" * 5000, "has 5000 bytes of UTF-8, and the limit is 4096"),
    ("grammar", "start: foo", 'line 1, column 8: unknown name: "foo"'),
    ("grammar", 'start: a\na: "x" |\n b c', "line 3"),
    ("grammar", 'foo: "a"', "no start rule found"),
    ("grammar", "start: start", "no text has this form"),
    ("grammar", 'start: "a"\n%llguidance {}', "line 2, column 1: %llguidance is not served"),
    ("grammar", 'start: %json {"type": "integer"}', "line 1, column 8: %json is not served"),
    ("grammar", "start: a\na[temperature=0.3]: /b/", "line 2, column 3: temperature is not served"),
    ("grammar", "start: <zork>", "line 1, column 8: unknown special token"),
    ("grammar", "x" * 20_000, "has 20000 bytes of UTF-8, and the limit is 16384"),
]


@pytest.mark.parametrize(("kind", "form", "problem"), FAULTS, ids=[str(at) for at in range(len(FAULTS))])
def test_what_cannot_be_used_is_refused_by_name_and_place(kind: str, form: Any, problem: str) -> None:
    text = form if isinstance(form, str) else json.dumps(form)
    with pytest.raises(InvalidParameter) as caught:
        compiled(kind, text)
    assert caught.value.field == f"constraint.{kind}"
    assert problem in caught.value.problem
    assert "\n" not in caught.value.problem


def chain(letters: str, rule: str) -> str:
    """A grammar of 1,800 rules, each of which names the next."""
    names = ["".join(name) for name in product(letters, repeat=3)][:1800]
    return "\n".join(
        [f"start: {names[0]}", *(rule.format(*pair) for pair in pairwise(names)), f'{names[-1]}: "a"']
    )


def references(number: int, wrap: Callable[[Any], Any]) -> str:
    parts = {f"a{at}": wrap({"$ref": f"#/$defs/a{at + 1}"}) for at in range(number)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**parts, f"a{number}": {"type": "null"}}}
    return json.dumps(schema, separators=(",", ":"))


def nested(part: Any) -> Any:
    for _ in range(40):
        part = {"items": part}
    return part


FOUR, DOZEN = "abcd", "efghijklmnop"
HOSTILE = [
    ("regex", "a?" * 2048),
    ("regex", "(a?b?)" * 680),
    ("regex", "a{1000000}"),
    ("regex", "(((a{100}){100}){100}){100}"),
    ("regex", "(.*a.{20}){5}.*b.{2000}"),
    ("regex", r"(\p{L}{1,500}\d?){500}"),
    ("regex", "(" * 2000 + "a" + ")" * 2000),
    ("grammar", chain("abcdefghijklmn", "{}:{}")),
    ("grammar", chain("ABCDEFGHIJKLMN", "{}:{}")),
    ("grammar", "start: T0\n" + "\n".join(f"T{at}: T{at + 1} T{at + 1}" for at in range(40)) + '\nT40: "a"'),
    ("grammar", "start: " + "x* " * 5000 + '\nx: "a"'),
    ("grammar", "start: " + '"a"? ' * 3000),
    ("grammar", 'start: "a"{100000000}'),
    ("grammar", "start: A\nA: " + "/a?/ " * 3000),
    ("grammar", 'start: start start | "a" | '),
    ("json_schema", references(900, lambda part: {"type": "object", "properties": {"a": part}})),
    ("json_schema", references(1400, lambda part: {"items": part})),
    ("json_schema", references(140, nested)),
    ("json_schema", references(950, lambda part: {"anyOf": [part, {"type": "string"}]})),
    ("json_schema", references(40, lambda part: {"allOf": [part, part]})),
    ("json_schema", json.dumps({"allOf": [{"anyOf": [{"required": [a + b]} for a in FOUR]} for b in DOZEN]})),
    ("json_schema", json.dumps({"type": "array", "minItems": 10**9, "items": {"type": "string"}})),
    ("json_schema", json.dumps({"type": "string", "minLength": 10**9})),
    ("json_schema", json.dumps({"properties": {str(at): {} for at in range(4000)}})),
    ("json_schema", json.dumps({"prefixItems": [{"multipleOf": 9973, "minimum": at} for at in range(900)]})),
    ("json_schema", json.dumps({"enum": [str(at) * 3 for at in range(3000)]})),
    ("choice", json.dumps(["x" * 5 + str(at) for at in range(5000)])),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "form"), HOSTILE, ids=[str(at) for at in range(len(HOSTILE))])
def test_a_hard_form_is_refused_or_goes_on_and_nothing_hangs_or_dies(kind: str, form: str) -> None:
    """Most of these took a minute, gigabytes or the process where nothing bounded it; see decision 19."""
    assert len(form) <= MAX_BYTES.get(kind, MAX_CONSTRAINT_BYTES), "this is refused for its size alone"
    try:
        constraint = compiled(kind, form)()
    except InvalidParameter as error:
        assert error.field == f"constraint.{kind}"  # noqa: PT017 - either outcome is right
        return
    rng = random.Random(0)
    for _ in range(20):
        if constraint.is_complete:
            break
        choices = allowed(constraint)
        assert choices
        constraint.advance(rng.choice(choices))


@given(
    st.text(max_size=200) | st.text('(){}[]|*+?.\\"/:a<>%$#\n,1', max_size=60),
    st.sampled_from(["json_schema", "regex", "grammar"]),
)
@settings(deadline=None)
def test_any_text_is_a_form_or_refused(text: str, kind: str) -> None:
    try:
        allowed(compiled(kind, text)())
    except InvalidParameter as error:
        assert error.field == f"constraint.{kind}"  # noqa: PT017 - either outcome is right
