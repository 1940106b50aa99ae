"""One loaded model as the services see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_grpc.config import MAX_SEQUENCES, ModelConfig
from llm_grpc.engine.adapters import Adapters
from llm_grpc.manifest import Manifest
from llm_grpc.text.chat_template import ChatTemplate
from llm_grpc.text.constraints import Constraints
from llm_grpc.text.generator import TextGenerator
from llm_grpc.text.scorer import TextScorer
from llm_grpc.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Runtime:
    """What computes: name and ``version``, for instance "onnxruntime 1.31.1", and execution ``provider``."""

    version: str
    provider: str


@dataclass(frozen=True)
class ServedModel:
    """What it is, what a request may ask of it, what it gets by default, and who serves it.

    ``max_held`` is how many sequences the server holds at once. ``constraints`` are None where the model
    takes none.
    """

    name: str
    manifest: Manifest
    digest: str
    context_tokens: int
    max_message_bytes: int
    prefix_reuse: bool
    defaults: ModelConfig
    generator: TextGenerator
    scorer: TextScorer
    runtime: Runtime
    max_held: int
    tokenizer: TextTokenizer
    chat_template: ChatTemplate | None = None
    constraints: Constraints | None = None
    adapters: Adapters = field(default_factory=Adapters)

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be written as its prompts."""
        return self.chat_template is not None

    @property
    def has_tools(self) -> bool:
        """Whether its template shows tools, in a form whose calls the server understands."""
        return self.chat_template is not None and self.chat_template.tool_format is not None

    @property
    def takes_constraints(self) -> bool:
        """Whether its answers can be held to a schema, an expression or a grammar."""
        return self.constraints is not None

    @property
    def takes_adapters(self) -> bool:
        """Whether it was exported with room for adapters."""
        return self.adapters.max_rank > 0

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

    @property
    def max_sequences(self) -> int:
        """Most sequences of a request: no more than the server holds at once."""
        return min(MAX_SEQUENCES, self.max_held)
