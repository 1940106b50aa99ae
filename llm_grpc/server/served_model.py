"""One loaded model as the services see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_grpc.config import ModelConfig
from llm_grpc.engine.adapters import Adapters
from llm_grpc.manifest import Manifest
from llm_grpc.text.generator import TextGenerator


@dataclass(frozen=True)
class ServedModel:
    """What it is, what a request may ask of it, what it gets by default, who serves it, what changes it."""

    name: str
    manifest: Manifest
    digest: str
    context_tokens: int
    max_message_bytes: int
    prefix_reuse: bool
    defaults: ModelConfig
    generator: TextGenerator
    adapters: Adapters = field(default_factory=Adapters)

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
