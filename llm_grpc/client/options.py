"""What a call of the clients may ask for, as keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class GenerateOptions(TypedDict, total=False):
    """What a request may ask for besides its prompt. What is left out, or None, is the server's to choose.

    Names and ranges are those of ``GenerateTextRequest`` and the messages in it, where all is described;
    ``stop`` is ``stopping.stop_strings``. Of ``json_schema``, ``json_object``, ``regex``, ``grammar`` and
    ``choice`` there may be one.
    """

    max_tokens: int
    """Most tokens to generate; 0 is the server's default."""

    temperature: float | None
    """Divides the logits; 0.0 is greedy."""

    top_p: float | None
    """Keeps the most likely tokens that reach this probability."""

    top_k: int | None
    """Keeps this many of the most likely tokens; 0 keeps all."""

    min_p: float | None
    """Keeps the tokens that are at least this likely, as a share of the likeliest one's probability."""

    typical_p: float | None
    """Keeps the tokens of the most typical surprise that reach this probability."""

    repetition_penalty: float | None
    """Makes what prompt and text have less likely; 1 changes nothing."""

    presence_penalty: float | None
    """Is subtracted from the logits of tokens that the text has."""

    frequency_penalty: float | None
    """Is subtracted from a token's logit for each time that the text has it."""

    logit_bias: Mapping[int, float]
    """Is added to the logits of these tokens."""

    allowed_token_ids: Sequence[int]
    """The only tokens that may come, besides an end-of-sequence one."""

    banned_token_ids: Sequence[int]
    """Tokens that may not come."""

    seed: int | None
    """Makes sampling repeatable; with None the server draws one and reports it."""

    n: int | None
    """Sequences to generate; the prompt is computed once."""

    stop: Sequence[str]
    """Texts that end the answer; they are not part of it."""

    stop_token_ids: Sequence[int]
    """Tokens that end the answer; they give no text."""

    include_stop: bool
    """Leave what ended the answer at its end."""

    min_tokens: int
    """Tokens before which nothing but the limits ends the answer."""

    ignore_eos: bool
    """An end-of-sequence token does not end the answer."""

    json_schema: str | Mapping[str, Any] | None
    """The answer is a document that is valid by this JSON schema, a text or what ``json.dumps`` takes."""

    json_object: bool
    """The answer is a JSON object."""

    regex: str | None
    """The whole answer matches this regular expression."""

    grammar: str | None
    """The answer is of this grammar, in the Lark format."""

    choice: Sequence[str]
    """The answer is one of these texts."""

    tokens: bool
    """The answer's messages carry token ids beside the text."""

    logprobs: bool
    """Tokens carry the logarithms of their probabilities."""

    top_logprobs: int
    """Tokens carry this many likeliest ones at their place."""

    token_text: bool
    """Tokens carry the bytes that they gave the text."""

    prompt_logprobs: bool
    """The answer tells the logarithms of the probabilities of the prompt's tokens."""

    prompt_top_logprobs: int
    """The prompt's tokens carry this many likeliest ones at their place."""

    prompt_tokens: bool
    """The answer tells the prompt's tokens."""

    echo: bool
    """The answer tells the prompt's text, in ``prompt_info``."""

    timing: bool
    """The answer tells what took how long."""

    receipt: bool
    """The answer tells what computed it."""

    truncate_prompt_tokens: int
    """Keep this many tokens of the prompt at most, the last ones; 0 keeps all."""

    cache_disabled: bool
    """Use nothing that earlier requests left in the server's cache, and leave nothing there."""

    cache_salt: str
    """Share the server's cache with requests of the same salt alone."""

    model: str
    """Name of the model; empty is the server's default."""

    adapter: str
    """Name of the adapter; empty is the model as it is."""

    request_id: str
    """The caller's name for the request: sent again under it, it is not computed again."""

    priority: int
    """Requests of a higher one go first."""


Prompt = str | Sequence[int]
"""A text, or ids of the model's tokenizer."""
