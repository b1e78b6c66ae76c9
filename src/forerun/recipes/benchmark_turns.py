"""A time limit shared among those whose turn comes one after the other, each with cases of different sizes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Turns:
    """Says whether a case may begin, and lists what was left out.

    Attributes:
        deadline_s: When the last turn has to be done, by the clock.
        num_left: Turns that have not begun.
        clock: Seconds, from anywhere on.
        left_out: Cases that were not measured, and why where it is not for want of time.
    """

    deadline_s: float
    num_left: int
    clock: Callable[[], float] = time.perf_counter
    left_out: list[str] = field(default_factory=list[str])
    _own_deadline_s: float = 0.0
    _begun: tuple[float, int] | None = None
    _done: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])

    def begin(self) -> None:
        """Begin a turn, with an equal part of the time that is left."""
        now = self.clock()
        self._own_deadline_s = now + (self.deadline_s - now) / self.num_left
        self.num_left -= 1
        self._begun = None
        self._done.clear()

    def has_time(self, name: str, *, num_tokens: int) -> bool:
        """Return whether a case may begin; its name is listed if not.

        It may if it will be done by the end of its turn, as far as the cases of this turn before it tell.

        Args:
            name: Of the case.
            num_tokens: Of all its prompts.
        """
        now = self.clock()
        if self._begun is not None:
            began, size = self._begun
            self._done.append((size, now - began))
            self._begun = None
        if now < self._own_deadline_s and now + self._expected_s(num_tokens) <= self._own_deadline_s:
            self._begun = (now, num_tokens)
            return True
        self.left_out.append(name)
        return False

    def leave_out(self, name: str, why: str) -> None:
        """List a case that could not be measured."""
        self.left_out.append(f"{name}: {why}")

    def _expected_s(self, num_tokens: int) -> float:
        """Return the time of the longest case before, and more along the line from the smallest to the largest."""
        if not self._done:
            return 0.0
        (least, least_s), (most, most_s) = min(self._done), max(self._done)
        slope_s = max(0.0, (most_s - least_s) / (most - least)) if most > least else 0.0
        return max(seconds for _, seconds in self._done) + slope_s * max(0, num_tokens - most)
