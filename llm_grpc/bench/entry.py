"""One request to send, and what the served model allows of it."""

from __future__ import annotations

from dataclasses import dataclass

from llm_grpc.errors import BenchError


@dataclass(frozen=True, slots=True)
class Entry:
    """A prompt as token ids, the tokens to generate, and when it arrives (seconds since the run's begin)."""

    prompt: tuple[int, ...]
    output_tokens: int
    arrival_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What GetModel says of a model, in tokens."""

    vocabulary_size: int
    context_tokens: int
    max_prompt_tokens: int
    max_tokens: int

    def check(self, where: str, prompt_tokens: int, output_tokens: int) -> None:
        """Refuse lengths that the server would refuse or cut off.

        Raises:
            BenchError: names the field of `where`, its value and the limit.
        """
        for field, value, name, limit in (
            ("prompt_tokens", prompt_tokens, "max_prompt_tokens", self.max_prompt_tokens),
            ("output_tokens", output_tokens, "max_tokens", self.max_tokens),
            (
                "prompt_tokens and output_tokens",
                prompt_tokens + output_tokens,
                "context_tokens",
                self.context_tokens,
            ),
        ):
            if value > limit:
                raise BenchError(f"{where}: {field}: {value} is above the model's {name}, {limit}")
