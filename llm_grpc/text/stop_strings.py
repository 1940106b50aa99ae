"""Stop strings in a growing text: nothing that may still become one is let out."""

from __future__ import annotations


class StopStringMatcher:
    """Passes text on until one of ``stops`` appears in it.

    The match that is complete first wins, and of two that end together the longer one: so the result
    depends on the text alone, not on how tokens cut it, and no match waits for text that may make another.
    Text that could be the beginning of a stop string is held back until the next push decides. With
    ``includes_stop`` the match itself is shown, too.
    """

    def __init__(self, stops: tuple[str, ...], *, includes_stop: bool = False) -> None:
        self._stops = stops
        self._includes_stop = includes_stop
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""
        self._num_early = 0  # characters of what is held in which no match may end

    def push(self, text: str, out: list[str], *, is_early: bool = False) -> str | None:
        """Take new text, append to ``out`` what may be shown, and return the stop string if one appeared.

        No match ends in text that ``is_early``; one may begin there.
        """
        if not self._stops:
            out.append(text)
            return None
        self._held += text
        if is_early:
            self._num_early = len(self._held)
        elif found := [(at + len(s), at, s) for s in self._stops if (at := self._find(s)) >= 0]:
            end, at, stop = min(found)
            out.append(self._held[: end if self._includes_stop else at])
            self._held = ""
            return stop
        cut = self._first_possible_start()
        out.append(self._held[:cut])
        self._held = self._held[cut:]
        self._num_early = max(0, self._num_early - cut)
        return None

    def flush(self, out: list[str]) -> None:
        """Append to ``out`` what was held back: the text has ended."""
        out.append(self._held)
        self._held = ""

    def _find(self, stop: str) -> int:
        """Where ``stop`` begins; -1 where it is not."""
        return self._held.find(stop, max(0, self._num_early + 1 - len(stop)))

    def _first_possible_start(self) -> int:
        for at in range(max(0, len(self._held) - self._longest + 1), len(self._held)):
            tail = self._held[at:]
            if any(stop.startswith(tail) and stop != tail for stop in self._stops):
                return at
        return len(self._held)
