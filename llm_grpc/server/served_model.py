"""One loaded model as the services see it."""

from __future__ import annotations

from dataclasses import dataclass

from llm_grpc.config import ModelConfig
from llm_grpc.manifest import Manifest
from llm_grpc.text.chat_template import ChatTemplate
from llm_grpc.text.generator import TextGenerator
from llm_grpc.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class ServedModel:
    """What it is, what a request may ask of it, what it gets by default, and who serves it."""

    name: str
    manifest: Manifest
    digest: str
    context_tokens: int
    max_message_bytes: int
    prefix_reuse: bool
    defaults: ModelConfig
    generator: TextGenerator
    tokenizer: TextTokenizer
    chat_template: ChatTemplate | None

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt: at least one token must fit after it."""
        return self.context_tokens - 1

    @property
    def max_tokens(self) -> int:
        """Largest max_tokens: the context less a prompt of one token."""
        return self.context_tokens - 1

    @property
    def default_max_tokens(self) -> int:
        """What a request with max_tokens 0 gets."""
        return min(self.defaults.max_tokens, self.max_tokens)
