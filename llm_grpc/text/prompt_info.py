"""What a request asks to be told about its prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llm_grpc.engine.step_plan import TokenScore
from llm_grpc.text.text_delta import PromptInfo
from llm_grpc.text.text_request import TextRequest
from llm_grpc.text.token_records import records_of
from llm_grpc.text.tokenizer import TextTokenizer

_INLINE_TOKENS = 512
"""The records of longer prompts are made in a worker thread, so that the event loop stays free."""


def is_asked(request: TextRequest) -> bool:
    """Whether a request asks to be told anything about its prompt."""
    options, is_scored = request.options, request.params.num_prompt_logprobs is not None
    return is_scored or options.prompt_tokens or options.echo or request.truncate_tokens > 0


async def prompt_info(
    request: TextRequest,
    tokenizer: TextTokenizer,
    prompt_ids: Sequence[int],
    num_truncated: int,
    scores: Sequence[TokenScore],
) -> PromptInfo:
    """Of the prompt without its ``num_truncated`` first tokens; ``scores`` are those of its tokens but the
    first, where the request asks for them.
    """
    options, is_scored = request.options, request.params.num_prompt_logprobs is not None

    def made() -> PromptInfo:
        text = tokenizer.decode(prompt_ids) if options.echo else ""
        if not (is_scored or options.prompt_tokens):
            return PromptInfo(text, (), num_truncated)
        each = (None, *scores) if is_scored else (None,) * len(prompt_ids)
        tokens = records_of(tokenizer, prompt_ids, each, with_text=options.token_text)
        return PromptInfo(text, tokens, num_truncated)

    return made() if len(prompt_ids) <= _INLINE_TOKENS else await asyncio.to_thread(made)
