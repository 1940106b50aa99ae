"""Random valid calls of the methods beside GenerateText, and random forms: each answer keeps its promises."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.v1 import chat_pb2, llm_pb2, llm_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from tests.rpc.process import HANG_S, ServerProcess
from tests.rpc.test_random_requests import EOS, LAST_ALONE, LENGTH, PROMPTS, SETTINGS, STOP, STOPS

CLOSE = 1e-3
"""How far apart logarithms of probabilities may be that were computed beside other tokens."""

WORDS = ("a", "le chat", "é", "😀", '"\\', "[x]{2}", "true", "x, y", "日本")
TEXTS = (*PROMPTS, "Hello, my name is Tom.", "Be brief.", "<|user|>")
ROLES = (chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT)


class Stubs(NamedTuple):
    """The services of one server."""

    llm: llm_pb2_grpc.LLMServiceStub
    tokenizer: tokenizer_pb2_grpc.TokenizerServiceStub

    def tokens(self, **asked: Any) -> tokenizer_pb2.TokenizeResponse:
        """The tokens of a text or a chat."""
        return self.tokenizer.Tokenize(tokenizer_pb2.TokenizeRequest(**asked), timeout=HANG_S)

    def ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The same, as ids of a text."""
        return [token.id for token in self.tokens(text=text, add_special_tokens=add_special_tokens).tokens]


@pytest.fixture(scope="module")
def stubs(embedded: ServerProcess) -> Iterator[Stubs]:
    with embedded.channel() as channel:
        yield Stubs(llm_pb2_grpc.LLMServiceStub(channel), tokenizer_pb2_grpc.TokenizerServiceStub(channel))


class Form(NamedTuple):
    """A form, and the schema, the expression or the texts that an answer is checked by."""

    constraint: llm_pb2.Constraint
    schema: Any = None
    pattern: str = ""
    choices: Sequence[str] = ()

    def check(self, text: str) -> None:
        """Fail unless a whole answer has the form."""
        if self.pattern:
            assert re.fullmatch(self.pattern, text), (self.pattern, text)
        elif self.choices:
            assert text in self.choices
        else:
            jsonschema.Draft202012Validator(self.schema).validate(json.loads(text))


def _objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def of(properties: dict[str, Any], num_required: int) -> dict[str, Any]:
        required = list(properties)[:num_required]
        return {
            "type": "object", "properties": properties, "required": required, "additionalProperties": False,
        }  # fmt: skip

    names = st.sampled_from(("a", "le chat", "é", '"', "x-y"))
    return st.builds(of, st.dictionaries(names, values, min_size=1, max_size=3), st.integers(0, 3))


def _lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def of(items: Any, least: int, more: int) -> dict[str, Any]:
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}

    return st.builds(of, values, st.integers(0, 2), st.integers(0, 2))


_leaves = st.one_of(
    st.sampled_from(({"type": "boolean"}, {"type": "null"}, {"type": "string", "maxLength": 5})),
    st.builds(
        lambda least, more: {"type": "integer", "minimum": least, "maximum": least + more},
        st.integers(-120, 120),
        st.integers(0, 500),
    ),
    st.builds(
        lambda values: {"enum": values}, st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True)
    ),
)
_schemas = st.recursive(_leaves, lambda inner: _objects(inner) | _lists(inner), max_leaves=5)


@st.composite
def _patterns(draw: st.DrawFn) -> str:
    """An expression that means the same to Python and to Rust, of bounded length."""
    pieces = st.builds(
        lambda part, least, more: f"(?:{part}){{{least},{least + more}}}",
        st.sampled_from(("[a-z]", "[0-9A-F]", "le|la|les", "é", r"\.", "[^a-z\n]", "(?:x|yz)?")),
        st.integers(0, 2),
        st.integers(0, 4),
    )
    return "".join(draw(st.lists(pieces, min_size=1, max_size=4)))


def _of_schema(schema: Any) -> Form:
    return Form(llm_pb2.Constraint(json_schema=json.dumps(schema)), schema=schema)


def _of_pattern(pattern: str) -> Form:
    return Form(llm_pb2.Constraint(regex=pattern), pattern=pattern)


def _of_grammar(parts: Sequence[str]) -> Form:
    """A list of words, of each some."""
    words = [json.dumps(part, ensure_ascii=False) for part in parts]
    rules = "\n".join(f"word{at}: {word}" for at, word in enumerate(words))
    grammar = "start: " + " ".join(f"word{at}{{1,3}}" for at in range(len(words))) + f"\n{rules}"
    pattern = "".join(f"(?:{re.escape(part)}){{1,3}}" for part in parts)
    return Form(llm_pb2.Constraint(grammar=grammar), pattern=pattern)


def _of_choices(choices: list[str]) -> Form:
    constraint = llm_pb2.Constraint(choice=llm_pb2.Choice(choices=choices))
    return Form(constraint, choices=choices)


_some_words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4)
_forms = st.one_of(
    _schemas.map(_of_schema),
    _patterns().map(_of_pattern),
    _some_words.map(_of_grammar),
    _some_words.map(_of_choices),
)


@st.composite
def _samplings(draw: st.DrawFn) -> llm_pb2.Sampling:
    """How tokens are chosen: the same ones each time."""
    sampling = llm_pb2.Sampling(
        temperature=draw(st.sampled_from((0.0, 0.7, 1.0, 2.0))),
        seed=draw(st.integers(0, 2**64 - 1)),
        top_p=draw(st.none() | st.floats(0.0625, 1, width=32)),
        frequency_penalty=draw(st.none() | st.floats(-2, 2, width=32)),
    )
    if sampling.temperature:
        sampling.n = draw(st.integers(1, 3))
    return sampling


def _check_form(stubs: Stubs, form: Form, asked: Request) -> None:
    asked.constraint.CopyFrom(form.constraint)
    answer = stubs.llm.GenerateText(asked, timeout=HANG_S)
    texts = [""] * max(asked.sampling.n, 1)
    for part in stubs.llm.StreamGenerateText(asked, timeout=HANG_S):
        texts[part.index] += part.generated_text
    wholes: Sequence[llm_pb2.GeneratedSequence | llm_pb2.GenerateTextResponse] = answer.sequences or [answer]
    for text, whole in zip(texts, wholes, strict=True):
        assert text == whole.generated_text
        assert whole.finish_reason in (EOS, STOP, LENGTH)
        if whole.finish_reason == LENGTH:
            assert whole.usage.completion_tokens == asked.max_tokens
        elif not whole.stop_string:
            form.check(text)
        if form.choices and not whole.stop_string:
            begun = text.rstrip("\ufffd")  # what is cut may end within a character
            assert any(choice.startswith(begun) for choice in form.choices)


_held = st.builds(
    Request,
    prompt=st.sampled_from(PROMPTS),
    max_tokens=st.sampled_from((1, 20, 120)),
    sampling=_samplings(),
    stopping=st.builds(
        llm_pb2.Stopping,
        stop_strings=st.just([]) | st.lists(st.sampled_from(STOPS), max_size=2),
        include_stop=st.booleans(),
        ignore_eos=st.booleans(),
    ),
)


@settings(SETTINGS, max_examples=40)
@given(form=_forms, asked=_held)
def test_random_forms(stubs: Stubs, form: Form, asked: Request) -> None:
    _check_form(stubs, form, asked)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(SETTINGS, max_examples=1_500)
@given(form=_forms, asked=_held)
def test_many_random_forms(stubs: Stubs, form: Form, asked: Request) -> None:
    _check_form(stubs, form, asked)


_chats = st.builds(
    llm_pb2.ChatRequest,
    messages=st.lists(
        st.builds(chat_pb2.ChatMessage, role=st.sampled_from(ROLES), content=st.sampled_from(TEXTS)),
        min_size=1,
        max_size=4,
    ),
    max_tokens=st.integers(1, 20),
    sampling=_samplings(),
    stopping=st.builds(
        llm_pb2.Stopping,
        stop_strings=st.lists(st.sampled_from(STOPS), max_size=2),
        include_stop=st.booleans(),
        min_tokens=st.integers(0, 1),
    ),
    response_options=st.builds(
        llm_pb2.ResponseOptions,
        tokens=st.booleans(),
        token_text=st.booleans(),
        echo=st.booleans(),
        prompt_tokens=st.booleans(),
        timing=st.booleans(),
        receipt=st.booleans(),
    ),
    request_id=st.sampled_from(("", "chat")),
    priority=st.integers(-100, 100),
)


def _joined_chat(
    asked: llm_pb2.ChatRequest, parts: Sequence[llm_pb2.ChatResponse]
) -> list[llm_pb2.ChatChoice]:
    """The sequences of a stream, after a look at what each of its messages may hold."""
    choices = [llm_pb2.ChatChoice(index=index) for index in range(max(asked.sampling.n, 1))]
    for number, part in enumerate(parts):
        choice, is_last = choices[part.index], part.finish_reason != 0
        assert part.sequence == number
        assert not choice.finish_reason, "a message after the last one"
        assert not part.HasField("prompt_info") or (number, part.index) == (0, 0)
        if is_last:
            assert (part.request_id, part.model) == (asked.request_id, "embedded")
            assert part.HasField("receipt") == asked.response_options.receipt
            assert part.HasField("timing") == asked.response_options.timing
        else:
            assert not {field.name for field, _ in part.ListFields()} & LAST_ALONE
        assert part.message.role == chat_pb2.ROLE_ASSISTANT
        choice.message.role = part.message.role
        choice.message.content += part.message.content
        choice.tokens.extend(part.tokens)
        if is_last:
            choice.finish_reason, choice.seed = part.finish_reason, part.seed
            choice.usage.CopyFrom(part.usage)
            _set_match(choice, part)
    assert all(choice.finish_reason for choice in choices)
    return choices


def _set_match(choice: llm_pb2.ChatChoice, part: llm_pb2.ChatResponse) -> None:
    match = part.WhichOneof("stop_match")
    if match:
        setattr(choice, match, getattr(part, match))


def _same(choice: llm_pb2.ChatChoice | llm_pb2.ChatResponse) -> llm_pb2.ChatChoice:
    """Without what depends on when it was asked."""
    copy = llm_pb2.ChatChoice(
        message=choice.message, finish_reason=choice.finish_reason, index=choice.index, seed=choice.seed,
        tokens=choice.tokens, usage=choice.usage,
    )  # fmt: skip
    _set_match(copy, choice)  # type: ignore[arg-type]
    copy.usage.cached_tokens = 0
    return copy


def _check_chat(stubs: Stubs, asked: llm_pb2.ChatRequest) -> None:
    answer = stubs.llm.Chat(asked, timeout=HANG_S)
    streamed = _joined_chat(asked, list(stubs.llm.StreamChat(asked, timeout=HANG_S)))
    wholes = answer.choices or [answer]
    assert [_same(whole) for whole in wholes] == [_same(choice) for choice in streamed]
    assert _same(answer) == _same(streamed[0])
    assert (len(answer.choices), answer.sequence) == (len(streamed) if len(streamed) > 1 else 0, 0)
    assert (answer.request_id, answer.model) == (asked.request_id, "embedded")
    # The template's prompt is what the tokenizer says it is, and text that is asked for by its tokens.
    shown = stubs.tokens(chat=tokenizer_pb2.ChatInput(messages=asked.messages))
    assert answer.usage.prompt_tokens == shown.count
    if asked.response_options.prompt_tokens:
        assert [each.id for each in answer.prompt_info.tokens] == [each.id for each in shown.tokens]
    generated = stubs.llm.GenerateText(
        Request(
            prompt_token_ids=[each.id for each in shown.tokens],
            max_tokens=asked.max_tokens,
            sampling=asked.sampling,
            stopping=asked.stopping,
        ),
        timeout=HANG_S,
    )
    texts = [each.generated_text for each in generated.sequences or [generated]]
    assert texts == [whole.message.content for whole in wholes]


@settings(SETTINGS, max_examples=40)
@given(asked=_chats)
def test_random_chats(stubs: Stubs, asked: llm_pb2.ChatRequest) -> None:
    _check_chat(stubs, asked)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(SETTINGS, max_examples=1_500)
@given(asked=_chats)
def test_many_random_chats(stubs: Stubs, asked: llm_pb2.ChatRequest) -> None:
    _check_chat(stubs, asked)


@st.composite
def _scores(draw: st.DrawFn) -> llm_pb2.ScoreTextRequest:
    asked = llm_pb2.ScoreTextRequest(
        top_logprobs=draw(st.integers(0, 4)),
        token_text=draw(st.booleans()),
        request_id=draw(st.sampled_from(("", "score"))),
        priority=draw(st.integers(-100, 100)),
        cache=llm_pb2.Cache(disabled=draw(st.booleans()), salt=draw(st.sampled_from(("", "a")))),
    )
    ids = st.lists(st.integers(0, 1023), min_size=1, max_size=6)
    if draw(st.booleans()):
        asked.prompt = draw(st.sampled_from(("", *PROMPTS)))
    else:
        asked.prompt_token_ids.extend(draw(ids))
    if draw(st.booleans()):
        asked.candidates.extend(draw(st.lists(st.sampled_from((*TEXTS, *WORDS)), min_size=1, max_size=5)))
    else:
        lists = draw(st.lists(ids, min_size=1, max_size=5))
        asked.candidate_token_ids.extend(llm_pb2.TokenIds(ids=each) for each in lists)
    return asked


def _check_scores(stubs: Stubs, asked: llm_pb2.ScoreTextRequest) -> None:
    answer = stubs.llm.ScoreText(asked, timeout=HANG_S)
    prompt = list(asked.prompt_token_ids) or stubs.ids(asked.prompt, add_special_tokens=True)
    candidates = [stubs.ids(text, add_special_tokens=False) for text in asked.candidates]
    candidates += [list(each.ids) for each in asked.candidate_token_ids]
    assert (answer.request_id, answer.model) == (asked.request_id, "embedded")
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == sum(map(len, candidates))
    assert answer.usage.cached_tokens < len(prompt) or not prompt
    for at, (ids, score) in enumerate(zip(candidates, answer.scores, strict=True)):
        assert [token.id for token in score.tokens] == ids
        assert score.logprob == pytest.approx(math.fsum(token.logprob for token in score.tokens), abs=1e-4)
        _check_tokens(asked, score, asked.candidates[at] if asked.candidates else None)
    # They are what a prompt's own tokens are told to have.
    told = Request(prompt_token_ids=[*prompt, *candidates[-1]], max_tokens=1)
    told.response_options.prompt_logprobs = True
    tokens = stubs.llm.GenerateText(told, timeout=HANG_S).prompt_info.tokens[len(prompt) :]
    last = [token.logprob for token in answer.scores[-1].tokens]
    assert last == pytest.approx([token.logprob for token in tokens], abs=CLOSE)


def _check_tokens(asked: llm_pb2.ScoreTextRequest, score: llm_pb2.Score, text: str | None) -> None:
    data = b""
    for token in score.tokens:
        assert token.HasField("logprob")
        assert token.text_offset == len(data)
        data += token.text
        likeliest = [top.logprob for top in token.top_logprobs]
        assert len(likeliest) == asked.top_logprobs
        assert likeliest == sorted(likeliest, reverse=True)
        assert token.logprob <= max(likeliest, default=0) + CLOSE
        assert any(top.text for top in token.top_logprobs) <= asked.token_text
    if text is not None and "<|" not in text:  # special tokens give no text
        assert data == (text.encode() if asked.token_text else b"")


@settings(SETTINGS, max_examples=40)
@given(asked=_scores())
def test_random_scores(stubs: Stubs, asked: llm_pb2.ScoreTextRequest) -> None:
    _check_scores(stubs, asked)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(SETTINGS, max_examples=1_500)
@given(asked=_scores())
def test_many_random_scores(stubs: Stubs, asked: llm_pb2.ScoreTextRequest) -> None:
    _check_scores(stubs, asked)
