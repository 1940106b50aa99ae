"""Guesses at what a sequence says next, from what followed the same tokens before.

A summary quotes its source, an edit repeats most of a text, and a table its rows. One run can check several
guesses at once, which costs little more than a run for one token while weights are read from memory.
"""

from __future__ import annotations

from collections.abc import Iterable

_GRAMS = (3, 2)
"""How many last tokens are looked for; more first, for they tell better."""

_FIRST_GUESSES = 4
_LONGEST_REST = 32
"""Tokens without a guess after guesses that were wrong five times in a row."""


class PromptLookup:
    """One sequence, and where each of its short passages was last followed by something.

    The number of guesses follows how many came true. After wrong ones there are none for a while, each time
    for twice as long, so that a sequence without repetition pays for few of them.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._followed: dict[tuple[int, ...], int] = {}
        self._num_guesses = _FIRST_GUESSES
        self._misses = self._rest = 0
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The sequence goes on with ``tokens``."""
        for token in tokens:
            self._rest -= self._rest > 0
            for size in _GRAMS:
                if len(self._tokens) >= size:
                    self._followed[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)

    def guesses(self, limit: int) -> list[int]:
        """At most ``limit`` tokens that may come next."""
        place = None if self._rest else self._place()
        if place is None:
            return []
        guesses: list[int] = []
        for at in range(place, place + min(limit, self._num_guesses)):
            beyond = at - len(self._tokens)  # what was guessed may be what repeats
            guesses.append(self._tokens[at] if beyond < 0 else guesses[beyond])
        return guesses

    def checked(self, num_guesses: int, num_right: int) -> None:
        """The first ``num_right`` of so many guesses came true."""
        self._misses = 0 if num_right else self._misses + 1
        self._rest = min(2**self._misses, _LONGEST_REST) if self._misses else 0
        self._num_guesses = 2 * num_guesses if num_right == num_guesses else max(num_right, 1)

    def _place(self) -> int | None:
        found = (self._followed.get(tuple(self._tokens[-size:])) for size in _GRAMS)
        return next((place for place in found if place is not None), None)
