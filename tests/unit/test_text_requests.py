"""From the contract's request to the project's: every field, its limits, and what makes no sense together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpc.config import MAX_SEQUENCES, ModelConfig
from llm_grpc.errors import InvalidParameter, PromptTooLong
from llm_grpc.manifest import load_manifest
from llm_grpc.sampling_params import SamplingParams
from llm_grpc.server.requests import to_text_request
from llm_grpc.server.served_model import Runtime, ServedModel
from llm_grpc.text.generator import TextGenerator
from llm_grpc.text.scorer import TextScorer
from llm_grpc.text.text_request import AnswerOptions
from llm_grpc.text.tokenizer import TextTokenizer
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from llm_grpc.v1.llm_pb2 import ResponseOptions, Sampling, Stopping
from tests.rpc.models import CONTEXT_TOKENS, EOS, write_model_dir

NAN, INF = math.nan, math.inf
VOCABULARY = range(257)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return ServedModel(
        name="scripted",
        manifest=load_manifest(write_model_dir(tmp_path_factory.mktemp("model"))),
        digest="sha256:0",
        context_tokens=CONTEXT_TOKENS,
        max_message_bytes=1 << 20,
        prefix_reuse=True,
        defaults=ModelConfig(max_tokens=20),
        generator=cast("TextGenerator", None),
        scorer=cast("TextScorer", None),
        tokenizer=cast("TextTokenizer", None),
        runtime=Runtime("none", "none"),
        max_held=8,
    )


def sampling(**fields: Any) -> Request:
    return Request(prompt="a", sampling=Sampling(**fields))


def stopping(**fields: Any) -> Request:
    return Request(prompt="a", stopping=Stopping(**fields))


def options(**fields: Any) -> Request:
    return Request(prompt="a", response_options=ResponseOptions(**fields))


BAD: list[tuple[Request, str, str]] = [
    *[
        (sampling(**{name: value}), f"sampling.{name}", f"is {value:g}, and must be {limits}")
        for name, limits, values in (
            ("temperature", "0 to 2", (-0.5, 2.5, NAN, INF)),
            ("top_p", "above 0 and at most 1", (0.0, 1.5, NAN, -INF)),
            ("top_k", "0 or more", (-1,)),
            ("min_p", "0 to 1", (-0.5, 1.5, NAN)),
            ("typical_p", "above 0 and at most 1", (0.0, 1.5, NAN)),
            ("repetition_penalty", "above 0 and at most 10", (0.0, -1.0, 10.5, NAN, INF)),
            ("presence_penalty", "-2 to 2", (-2.5, 2.5, NAN, INF)),
            ("frequency_penalty", "-2 to 2", (-2.5, 2.5, NAN, -INF)),
        )
        for value in values
    ],
    *[
        (sampling(logit_bias={7: value}), "sampling.logit_bias[7]", "must be -100 to 100")
        for value in (-100.5, 100.5, NAN, INF)
    ],
    (sampling(logit_bias={-1: 0}), "sampling.logit_bias[-1]", "has a token that is not 0 to 256"),
    (sampling(logit_bias={257: 0}), "sampling.logit_bias[257]", "has a token that is not 0 to 256"),
    (
        sampling(logit_bias=dict.fromkeys(range(1025), 1.0)),
        "sampling.logit_bias",
        "has 1025 entries, and the limit is 1024",
    ),
    (sampling(n=0, temperature=1), "sampling.n", "is 0, and must be 1 to 8"),
    (sampling(n=9, temperature=1), "sampling.n", "is 9, and must be 1 to 8"),
    (sampling(n=2), "sampling.n", "is 2, and more than 1 needs a temperature above 0: sampling.temperature"),
    (
        sampling(allowed_token_ids=[3, 4], banned_token_ids=[4, 3, 9]),
        "sampling.banned_token_ids",
        "bans all that sampling.allowed_token_ids allow",
    ),
    (
        sampling(banned_token_ids=VOCABULARY),
        "sampling.banned_token_ids",
        "bans all 257 tokens of the vocabulary",
    ),
    *[
        (make(**{name: ids}), f"{make.__name__}.{name}{at}", problem)
        for make, name in (
            (sampling, "allowed_token_ids"),
            (sampling, "banned_token_ids"),
            (stopping, "stop_token_ids"),
        )
        for ids, at, problem in (
            ([5, 257], "[1]", "is 257, and must be 0 to 256"),
            ([-1], "[0]", "is -1, and must be 0 to 256"),
            ([5] * 1025, "", "has 1025 entries, and the limit is 1024"),
        )
    ],
    (stopping(min_tokens=-1), "stopping.min_tokens", "is -1, and must be 0 to max_tokens, which is 20"),
    (stopping(min_tokens=21), "stopping.min_tokens", "is 21, and must be 0 to max_tokens, which is 20"),
    (
        Request(prompt="a", max_tokens=5, stopping=Stopping(min_tokens=6)),
        "stopping.min_tokens",
        "is 6, and must be 0 to max_tokens, which is 5",
    ),
    (
        Request(
            prompt="a",
            sampling=Sampling(allowed_token_ids=[3, EOS]),
            stopping=Stopping(min_tokens=1, stop_token_ids=[3]),
        ),
        "stopping.min_tokens",
        "is 1, and sampling.allowed_token_ids allow nothing that may come before",
    ),
    (
        Request(
            prompt="a",
            sampling=Sampling(banned_token_ids=range(1, 256)),
            stopping=Stopping(min_tokens=1, stop_token_ids=[0]),
        ),
        "stopping.min_tokens",
        "sampling.banned_token_ids and stopping.stop_token_ids leave nothing",
    ),
    *[
        (options(**{name: value}), f"response_options.{name}", f"is {value}, and must be 0 to 20")
        for name in ("top_logprobs", "prompt_top_logprobs")
        for value in (-1, 21)
    ],
    (Request(prompt="a", truncate_prompt_tokens=-1), "truncate_prompt_tokens", "is -1, and must be 0 to 63"),
    (Request(prompt="a", truncate_prompt_tokens=64), "truncate_prompt_tokens", "is 64, and must be 0 to 63"),
]


@pytest.mark.parametrize(("request_", "field", "problem"), BAD, ids=lambda value: str(value)[:50])
def test_a_bad_field_is_named(model: ServedModel, request_: Request, field: str, problem: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        to_text_request(request_, model)
    assert caught.value.field == field
    assert problem in caught.value.problem


def test_what_is_unset_is_the_models_default(model: ServedModel) -> None:
    defaults = ModelConfig(
        max_tokens=9, temperature=0.5, top_p=0.25, top_k=3, presence_penalty=-1.0, frequency_penalty=2.0
    )
    asked = to_text_request(Request(prompt="a"), replace(model, defaults=defaults))
    assert replace(asked.params, seed=0) == SamplingParams(
        9,
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        max_tokens_asked=False,
    )
    assert (asked.num_sequences, asked.options, asked.truncate_tokens) == (1, AnswerOptions(), 0)
    assert asked.params.seed > 0


def test_zero_beats_a_default(model: ServedModel) -> None:
    defaults = ModelConfig(temperature=0.5, top_k=3, presence_penalty=-1.0, frequency_penalty=2.0)
    zero = Sampling(temperature=0, top_k=0, presence_penalty=0, frequency_penalty=0)
    params = to_text_request(Request(prompt="a", sampling=zero), replace(model, defaults=defaults)).params
    assert params == SamplingParams(63, max_tokens_asked=False)


def test_everything_that_is_asked_arrives(model: ServedModel) -> None:
    request = Request(
        prompt_token_ids=[1, 2],
        max_tokens=7,
        sampling=Sampling(
            temperature=0.5, top_p=0.25, top_k=3, seed=2**64 - 1, min_p=0.125, typical_p=0.75,
            repetition_penalty=1.5, presence_penalty=-0.5, frequency_penalty=0.25, logit_bias={9: -100, 3: 1},
            allowed_token_ids=[9, 3, 9], banned_token_ids=[9, 8], n=3,
        ),
        stopping=Stopping(
            stop_strings=["x"], stop_token_ids=[5, 5], include_stop=True, min_tokens=2, ignore_eos=True
        ),
        response_options=ResponseOptions(
            top_logprobs=4, token_text=True, prompt_top_logprobs=2, prompt_tokens=True, echo=True,
            timing=True, receipt=True,
        ),
        truncate_prompt_tokens=63,
    )  # fmt: skip
    asked = to_text_request(request, model)
    assert asked.params == SamplingParams(
        max_tokens=7, temperature=0.5, top_p=0.25, top_k=3, min_p=0.125, typical_p=0.75,
        repetition_penalty=1.5, presence_penalty=-0.5, frequency_penalty=0.25,
        logit_bias=((3, 1.0), (9, -100.0)), allowed_token_ids=(9, 3), banned_token_ids=(9, 8),
        seed=2**64 - 1, stop_strings=("x",), stop_token_ids=(5,), include_stop=True, min_tokens=2,
        ignore_eos=True, num_logprobs=4, num_prompt_logprobs=2,
    )  # fmt: skip
    assert asked.options == AnswerOptions(
        tokens=True, token_text=True, prompt_tokens=True, echo=True, timing=True, receipt=True
    )
    assert (asked.prompt, asked.num_sequences, asked.truncate_tokens) == ([1, 2], 3, 63)


def test_an_end_of_sequence_token_is_allowed_unless_it_is_ignored(model: ServedModel) -> None:
    request = sampling(allowed_token_ids=[5])
    assert to_text_request(request, model).params.allowed_token_ids == (5, EOS)
    request.stopping.ignore_eos = True
    assert to_text_request(request, model).params.allowed_token_ids == (5,)


@pytest.mark.parametrize(
    "request_",
    [
        Request(
            prompt="a",
            sampling=Sampling(banned_token_ids=[5], logit_bias={5: 1}),
            stopping=Stopping(stop_token_ids=[5]),
        ),
        stopping(include_stop=True),
        sampling(temperature=0, top_p=0.5, top_k=3, min_p=0.5, typical_p=0.5),
        sampling(n=1),
        sampling(banned_token_ids=range(256)),
        stopping(min_tokens=20, stop_token_ids=range(255)),
        Request(prompt="a", sampling=Sampling(allowed_token_ids=[3, 4]), stopping=Stopping(min_tokens=3)),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_odd_but_means_something_is_taken(model: ServedModel, request_: Request) -> None:
    to_text_request(request_, model)


@pytest.mark.parametrize(
    ("asked", "tokens", "num_top"),
    [
        ({}, False, None),
        ({"tokens": True}, True, None),
        ({"token_text": True}, True, None),
        ({"logprobs": True}, True, 0),
        ({"top_logprobs": 3}, True, 3),
        ({"top_logprobs": 3, "logprobs": True}, True, 3),
    ],
)
def test_what_an_option_implies(
    model: ServedModel, asked: dict[str, Any], tokens: bool, num_top: int | None
) -> None:
    found = to_text_request(options(**asked), model)
    assert (found.options.tokens, found.params.num_logprobs) == (tokens, num_top)
    prompt = {f"prompt_{name}": value for name, value in asked.items() if name.endswith("logprobs")}
    assert to_text_request(options(**prompt), model).params.num_prompt_logprobs == (
        None if not prompt else num_top
    )


def test_more_ids_than_fit_are_taken_where_they_are_cut(model: ServedModel) -> None:
    request = Request(prompt_token_ids=[1] * CONTEXT_TOKENS)
    with pytest.raises(PromptTooLong):
        to_text_request(request, model)
    request.truncate_prompt_tokens = 5
    assert to_text_request(request, model).truncate_tokens == 5


@pytest.mark.parametrize(("max_held", "most"), [(1, 1), (8, 8), (1000, MAX_SEQUENCES)])
def test_no_more_sequences_than_the_server_holds(model: ServedModel, max_held: int, most: int) -> None:
    served = replace(model, max_held=max_held)
    assert to_text_request(sampling(n=most, temperature=1), served).num_sequences == most
    with pytest.raises(InvalidParameter, match=f"must be 1 to {most}"):
        to_text_request(sampling(n=most + 1, temperature=1), served)


FLOATS = st.floats(width=32) | st.sampled_from([0.0, 1.0, 2.0, -2.0, 10.0, 0.5])
INTS = st.integers(-2, 30)
LISTS = st.lists(st.integers(-1, 258), max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    floats=st.dictionaries(
        st.sampled_from(
            [
                "temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
                "frequency_penalty",
            ]
        ),
        FLOATS,
        max_size=3,
    ),
    ints=st.dictionaries(st.sampled_from(["top_k", "n"]), INTS),
    lists=st.fixed_dictionaries({"allowed_token_ids": LISTS, "banned_token_ids": LISTS}),
    stops=LISTS,
    min_tokens=INTS,
    ignore_eos=st.booleans(),
)  # fmt: skip
def test_any_request_is_refused_or_can_be_computed(
    model: ServedModel,
    floats: dict[str, float],
    ints: dict[str, int],
    lists: dict[str, list[int]],
    stops: list[int],
    min_tokens: int,
    ignore_eos: bool,
) -> None:
    """Whatever is not refused is in its limits, and leaves a token that may come at every place."""
    fields: dict[str, Any] = {**floats, **ints, **lists}
    request = Request(
        prompt="a",
        sampling=Sampling(**fields),
        stopping=Stopping(stop_token_ids=stops, min_tokens=min_tokens, ignore_eos=ignore_eos),
    )
    try:
        asked = to_text_request(request, model)
    except InvalidParameter:
        return  # what is refused, and how, is the table's matter
    params = asked.params
    numbers = (params.min_p, params.typical_p, params.presence_penalty, params.frequency_penalty)
    assert all(map(math.isfinite, (params.temperature, params.top_p, params.repetition_penalty, *numbers)))
    assert params.repetition_penalty > 0
    assert asked.num_sequences == 1 or params.temperature > 0
    may_come = set(params.allowed_token_ids or VOCABULARY) - set(params.banned_token_ids)
    assert may_come
    if params.min_tokens:
        assert may_come - {*params.stop_token_ids, *([] if ignore_eos else [EOS])}
