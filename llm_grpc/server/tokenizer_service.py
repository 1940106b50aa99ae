"""``llm_grpc.v1.TokenizerService``."""

from __future__ import annotations

import asyncio
from typing import Any

from llm_grpc.errors import InvalidParameter
from llm_grpc.server.conversations import template_of, to_conversation
from llm_grpc.server.fields import beside_if_large, refuse_unknown_fields, token_ids
from llm_grpc.server.models import Models
from llm_grpc.server.served_model import ServedModel
from llm_grpc.text.chat_template import Conversation
from llm_grpc.v1 import tokenizer_pb2, tokenizer_pb2_grpc


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Text to tokens and back, in worker threads: a text may be as long as a message."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def Tokenize(
        self, request: tokenizer_pb2.TokenizeRequest, context: Any
    ) -> tokenizer_pb2.TokenizeResponse:
        """The tokens of a text or of a conversation."""
        model = self._models.get(request.model)
        conversation = await beside_if_large(request, lambda: _checked(request, model))
        if conversation is None:
            return await asyncio.to_thread(_tokenized, request, request.text, model)
        prompt = await _prompt(conversation, model)
        response = await asyncio.to_thread(_tokenized, request, prompt, model)
        if not request.count_only:
            response.prompt = prompt
        return response

    async def Detokenize(
        self, request: tokenizer_pb2.DetokenizeRequest, context: Any
    ) -> tokenizer_pb2.DetokenizeResponse:
        """The text of tokens."""
        refuse_unknown_fields(request)
        model = self._models.get(request.model)
        return await asyncio.to_thread(_detokenized, request, model)


def _checked(request: tokenizer_pb2.TokenizeRequest, model: ServedModel) -> Conversation | None:
    """The conversation of a request, None where it has a text."""
    if request.truncate_tokens < 0:
        raise InvalidParameter("truncate_tokens", f"is {request.truncate_tokens}, and must be 0 or more")
    if request.HasField("text"):
        refuse_unknown_fields(request)
        return None
    if not request.HasField("chat"):
        raise InvalidParameter("text", "must be set where there is no chat")
    if request.HasField("add_special_tokens"):
        problem = "must not be set with chat: its template says what is added"
        raise InvalidParameter("add_special_tokens", problem)
    chat = request.chat
    conversation = to_conversation(chat.messages, chat.tools, chat.template_options, model, "chat.")
    refuse_unknown_fields(request)
    return conversation


async def _prompt(conversation: Conversation, model: ServedModel) -> str:
    try:
        return await template_of(model).prompt(conversation)
    except InvalidParameter as error:
        raise InvalidParameter(f"chat.{error.field}", error.problem) from None


def _tokenized(
    request: tokenizer_pb2.TokenizeRequest, text: str, model: ServedModel
) -> tokenizer_pb2.TokenizeResponse:
    special = request.HasField("text") and (
        request.add_special_tokens or not request.HasField("add_special_tokens")
    )
    tokens = [] if request.count_only else model.tokenizer.tokens(text, add_special_tokens=special)
    total = len(tokens) or model.tokenizer.count(text, add_special_tokens=special)
    num_cut = max(0, total - request.truncate_tokens) if request.truncate_tokens else 0
    response = tokenizer_pb2.TokenizeResponse(count=total - num_cut, truncated_count=num_cut)
    for token in tokens[num_cut:]:
        response.tokens.add(id=token.id, text=token.text, start=token.start, end=token.end)
    return response


def _detokenized(
    request: tokenizer_pb2.DetokenizeRequest, model: ServedModel
) -> tokenizer_pb2.DetokenizeResponse:
    ids = token_ids("token_ids", list(request.token_ids), model.manifest.vocabulary_size)
    text = model.tokenizer.text(ids, keep_special_tokens=request.keep_special_tokens)
    return tokenizer_pb2.DetokenizeResponse(text=text)
