"""Where one sequence stands in its form, and which tokens may come next."""

from __future__ import annotations

from concurrent.futures import Executor, Future

from llguidance import LLMatcher

from llm_grpc.errors import InvalidParameter
from llm_grpc.text.constraint_faults import cause_of


class Mask:
    """Which tokens may come; computed by another thread."""

    def __init__(self, bits: Future[bytes]) -> None:
        self._bits = bits

    def wait(self) -> memoryview:
        """Bits as unsigned 32-bit numbers ``[ceil(vocabulary / 32)]``, the lowest of the first for id 0."""
        return memoryview(self.bits()).cast("I")

    def bits(self) -> bytes:
        """The same, as bytes."""
        return self._bits.result()


class ConstraintState:
    """A ``TokenConstraint`` of one sequence.

    ``matcher`` is its own, and stands at the beginning; ``first_mask`` is what may come there, and
    ``end_mask`` has the end-of-sequence tokens alone. ``executor`` computes masks; the library releases the
    GIL for that. Where the library gives up, because the form is too complex at this place, nothing but an
    end of sequence may come, so that no other request waits or fails, and ``check`` says why.
    """

    def __init__(
        self, matcher: LLMatcher, first_mask: bytes, end_mask: bytes, executor: Executor, field: str
    ) -> None:
        self._matcher = matcher
        self._end_mask = end_mask
        self._executor = executor
        self._field = field
        self._num_tokens = 0
        self._problem = ""
        self._mask: Future[bytes] | None = Future()
        self._mask.set_result(first_mask)

    @property
    def is_complete(self) -> bool:
        """Whether the sequence has the form and no token may follow but an end-of-sequence one."""
        return bool(self._problem) or bool(self._matcher.is_stopped())

    def start(self) -> Mask:
        """Begin to compute which tokens may come next; does not wait for it."""
        if self._mask is None:
            self._mask = self._executor.submit(self._compute)
        return Mask(self._mask)

    def advance(self, token: int) -> None:
        """The sequence has this token now, an end-of-sequence one too.

        Raises:
            ValueError: it may not come here.
        """
        mask = self.start().bits()
        if not mask[token >> 3] >> (token & 7) & 1:
            raise ValueError(f"this is a bug: token {token} may not come after {self._num_tokens} others")
        self._mask = None
        self._num_tokens += 1
        if not self._problem and not self._matcher.consume_token(token):
            self._give_up()

    def check(self) -> None:
        """Raise InvalidParameter where the library has given up."""
        if self._problem:
            raise InvalidParameter(
                self._field, f"is too complex after {self._num_tokens} tokens: {self._problem}"
            )

    def _compute(self) -> bytes:
        if not self._problem:
            bits: bytes = self._matcher.compute_bitmask()[: len(self._end_mask)]
            if not self._matcher.is_error():
                return bits
            self._give_up()
        return self._end_mask

    def _give_up(self) -> None:
        self._problem = cause_of(self._matcher.get_error()) or "no reason given"
