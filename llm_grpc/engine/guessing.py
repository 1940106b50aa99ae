"""Steps that check guesses at what a request says next, and what came of them.

The chosen tokens are those of steps without guesses: each is drawn from the logits after the tokens before
it, with the draw of its own place, and counts only if these are what was guessed. Where more than the logits
depends on the tokens before, penalties or a constraint, nothing is guessed: one step would take a history or
a mask for each guess, and a penalty makes repetition rare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llm_grpc.engine.prompt_lookup import PromptLookup
from llm_grpc.engine.request import Request
from llm_grpc.engine.samples import has_penalties
from llm_grpc.engine.step_plan import PrefillChunk, Sample, StepPlan


def guessing_step(
    request: Request, limit: int, sample: Callable[[Request, int, int], Sample]
) -> StepPlan | None:
    """A step for ``request`` alone that checks at most ``limit`` guesses; None where there are none.

    ``sample`` makes that of a row and of a place behind the request's next token.
    """
    if limit <= 0 or request.slot is None or request.constraint or has_penalties(request.params):
        return None
    if request.lookup is None:
        request.lookup = PromptLookup([*request.prompt_ids, *request.output_ids])
    guesses = request.lookup.guesses(limit)
    if not guesses:
        return None
    known = (request.output_ids[-1], *guesses)
    chunk = PrefillChunk(request.slot, request.num_computed, known, len(guesses), request.adapter)
    samples = (sample(request, row, row) for row in range(len(known)))
    return StepPlan((), (chunk,), tuple(samples))


def num_wrong(chunk: PrefillChunk, chosen: Sequence[int]) -> int:
    """How many of the chunk's guesses the run did not choose, or chose after one that it did not."""
    guesses = chunk.tokens[len(chunk.tokens) - chunk.num_guesses :]
    pairs = enumerate(zip(guesses, chosen, strict=False))
    num_right = next((at for at, (guess, token) in pairs if guess != token), chunk.num_guesses)
    return chunk.num_guesses - num_right


def learn(request: Request, num_guesses: int, wrong: int) -> None:
    """Tell the request's guesses how many of the last ones came true."""
    if num_guesses and request.lookup:
        request.lookup.checked(num_guesses, num_guesses - wrong)
