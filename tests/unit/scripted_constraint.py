"""A constraint without a grammar, which may fail anywhere."""

from __future__ import annotations

from array import array

from tests.unit.scripted_runner import VOCAB


class Broken(Exception):
    """What a constraint raises that fails."""


class ScriptedConstraint:
    """Lets tokens come that are odd or even as the place is, and is complete after ``length`` of them.

    It raises ``Broken`` at place ``fails_at`` in ``start``, ``wait``, ``advance`` or ``is_complete``.
    """

    def __init__(self, length: int = 1000, fails_at: int = -1, fails_in: str = "") -> None:
        self.length, self.fails_at, self.fails_in = length, fails_at, fails_in
        self.said: list[int] = []
        self.num_starts = self.num_waits = 0

    @property
    def is_complete(self) -> bool:
        self.check("is_complete", len(self.said) - 1)
        return len(self.said) >= self.length

    def start(self) -> ScriptedConstraint:
        assert self.num_starts == len(self.said), "a mask is begun once a token"
        self.num_starts += 1
        self.check("start", len(self.said))
        return self

    def wait(self) -> memoryview:
        self.num_waits += 1
        assert self.num_waits <= self.num_starts == len(self.said) + 1, "a mask is waited for once"
        self.check("wait", len(self.said))
        words = array("I", [0] * (-(-VOCAB // 32)))
        for token in range(VOCAB):
            if self.allows(len(self.said), token):
                words[token // 32] |= 1 << token % 32
        return memoryview(words)

    def advance(self, token: int) -> None:
        self.check("advance", len(self.said))
        self.said.append(token)

    def allows(self, place: int, token: int) -> bool:
        """Whether the token may come at this place."""
        return (place + token) % 2 == 0

    def check(self, where: str, place: int) -> None:
        if (where, place) == (self.fails_in, self.fails_at):
            raise Broken(f"at {place}")
