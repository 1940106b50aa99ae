from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from llm_grpc.cli.messages import fail
from llm_grpc.cli.server_address import target
from llm_grpc.client.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S
from llm_grpc.client.errors import LLMError
from llm_grpc.client.requests import GenerateOptions
from llm_grpc.client.sync_client import Client


def _not_an_option(_type: object, prompt: str) -> None:
    """A prompt may begin with a hyphen (`-` alone is standard input); a mistyped flag is no prompt."""
    if prompt.startswith("--"):
        raise ValueError("Unknown option; a prompt that begins with -- can come from standard input.")


def generate(  # noqa: PLR0913 - each argument is a flag
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True, validator=_not_an_option)],
    /,
    *,
    stream: Annotated[bool, Parameter(negative="")] = False,
    max_tokens: int = 0,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    stop: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    ignore_eos: Annotated[bool, Parameter(negative="")] = False,
    adapter: str = "",
    model: str = "",
    address: str = DEFAULT_ADDRESS,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> int:
    """Print what a server makes of a prompt; return the exit code.

    Parameters
    ----------
    prompt
        Text to continue; `-` reads it from standard input.
    stream
        Print the text as it is generated.
    max_tokens
        Most tokens to generate; 0 is the server's default.
    temperature
        Divides the logits; 0 is greedy. Without it the server's default applies.
    top_p
        Keeps the most likely tokens that reach this probability.
    top_k
        Keeps this many of the most likely tokens; 0 keeps all.
    seed
        Makes sampling repeatable.
    stop
        Text that ends the answer; may be given several times.
    ignore_eos
        Let an end-of-sequence token not end the answer.
    adapter
        Name of an adapter of the model; empty is the model as it is.
    model
        Name of the model; empty is the server's default.
    address
        Server, HOST:PORT. LLM_GRPC_ADDRESS counts too, with 0.0.0.0 or [::] read as loopback.
    timeout_s
        Deadline of the call in seconds.
    """
    options: GenerateOptions = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop,
        "ignore_eos": ignore_eos,
        "adapter": adapter,
        "model": model,
    }
    text = sys.stdin.read() if prompt == "-" else prompt
    try:
        with Client(target(address), timeout_s=timeout_s) as client:
            _answer(client, text, options, stream=stream)
    except (LLMError, ValueError) as error:
        return fail(describe(error))
    return 0


def _answer(client: Client, prompt: str, options: GenerateOptions, *, stream: bool) -> None:
    if stream:
        for message in client.stream(prompt, **options):
            print(message.generated_text, end="", flush=True)
        print()
    else:
        print(client.generate(prompt, **options).generated_text)


def describe(error: Exception) -> str:
    """Return an error as one line: code, reason, message, and the fields that the message does not name."""
    violations = error.field_violations if isinstance(error, LLMError) else ()
    fields = [f"{v.field}: {v.description}" for v in violations if v.description not in str(error)]
    return "; ".join([str(error), *fields])
