"""Chooses how far to speculate, from what this run has measured."""

from collections.abc import Sequence
from typing import Protocol

from forerun.engine.speculative.time_line import TimeLine

_DECAY = 0.98
"""Weight that a round keeps after each further round: the last 50 rounds count most."""
_PRIOR_ACCEPTANCE = 0.6
_PRIOR_WEIGHT = 2.0
_EXPLORE_EVERY = 12


class Controller(Protocol):
    """Sets the length of drafts, and learns from every round."""

    def num_speculative_tokens(self, num_requests: int) -> int:
        """Return the most draft tokens per request for a round of this many requests; 0 decodes without a draft."""
        ...

    def observe(self, *, proposed: Sequence[int], accepted: Sequence[int], round_s: float) -> None:
        """Learn how many draft tokens each request of a round had, how many were accepted, and the round's time."""
        ...

    def rate(self, num_requests: int) -> float | None:
        """Return the tokens per second and request to expect, this many side by side; ``None``: nothing is known."""
        ...

    def forget_times(self) -> None:
        """Let what is timed next outweigh what was timed before: the machine may have changed since."""
        ...


class FixedController:
    """Always the same length.

    Args:
        num_speculative_tokens: K.
    """

    def __init__(self, num_speculative_tokens: int) -> None:
        self._num_speculative_tokens = num_speculative_tokens

    def num_speculative_tokens(self, num_requests: int) -> int:
        """Return K."""
        return self._num_speculative_tokens

    def observe(self, *, proposed: Sequence[int], accepted: Sequence[int], round_s: float) -> None:
        """Nothing to learn."""

    def rate(self, num_requests: int) -> float | None:
        """Nothing is known."""
        return None

    def forget_times(self) -> None:
        """Nothing to forget."""


class Acceptance:
    """How often the draft token at each place was accepted, old rounds fading; ways with one draft may share it.

    Args:
        max_tokens: Longest draft.
    """

    def __init__(self, max_tokens: int) -> None:
        self._looked_at = [0.0] * (max_tokens + 1)
        self._accepted = [0.0] * (max_tokens + 1)

    def observe(self, *, proposed: Sequence[int], accepted: Sequence[int]) -> None:
        """Learn how many draft tokens each request of a round had, and how many were accepted."""
        self._looked_at = [_DECAY * count for count in self._looked_at]
        self._accepted = [_DECAY * count for count in self._accepted]
        for num_proposed, num_accepted in zip(proposed, accepted, strict=True):
            for place in range(1, min(num_proposed, num_accepted + 1, len(self._accepted) - 1) + 1):
                self._looked_at[place] += 1
                self._accepted[place] += place <= num_accepted

    def expected_tokens(self, length: int) -> float:
        """Return the expected number of tokens per round and request with drafts of this length."""
        expected, reached, last = 1.0, 1.0, _PRIOR_ACCEPTANCE
        for place in range(1, length + 1):
            looked_at = self._looked_at[place] + _PRIOR_WEIGHT
            last = (self._accepted[place] + _PRIOR_WEIGHT * last) / looked_at
            reached *= last
            expected += reached
        return expected


class AdaptiveController:
    r"""Picks the length with the most tokens per second, by measured acceptance and measured time.

    .. math:: K^* = \arg\max_K \frac{1 + \sum_{i \le K} \prod_{j \le i} a_j}{t_0 + t_1 K}

    :math:`a_j` is the share of accepted tokens among those at place j that were looked at; the time of a round is a
    line in K fitted for each number of requests (drafting, verification and waiting alike, whatever the method).
    Now and then a neighbouring length is tried, so that the estimates stay fresh; no draft at all is a length too, so a
    draft that does not pay is switched off, and tried again from time to time.

    Args:
        acceptance: What is known of the draft.
        least_tokens: Shortest draft to consider; 0 for none at all.
        max_tokens: Longest draft.
        initial: Length to begin with.
    """

    def __init__(self, acceptance: Acceptance, *, least_tokens: int, max_tokens: int, initial: int) -> None:
        self._acceptance, self._least_tokens, self._max_tokens = acceptance, least_tokens, max_tokens
        self._current = initial
        self._times: dict[int, TimeLine] = {}
        self._num_rounds = 0

    def num_speculative_tokens(self, num_requests: int) -> int:
        """Return the best length known, or sometimes a neighbour of it."""
        self._num_rounds += 1
        best = self._best(num_requests)
        self._current = best
        if self._num_rounds % _EXPLORE_EVERY == 0:
            if best == 0:
                return 2
            step = 1 if self._num_rounds % (2 * _EXPLORE_EVERY) else -1
            return min(self._max_tokens, max(self._least_tokens, best + step))
        return best

    def observe(self, *, proposed: Sequence[int], accepted: Sequence[int], round_s: float) -> None:
        """Update acceptance at each place that was looked at, and the line of times."""
        self._acceptance.observe(proposed=proposed, accepted=accepted)
        line = self._times.setdefault(len(proposed), TimeLine())
        line.add(sum(proposed) / len(proposed), round_s)

    def rate(self, num_requests: int) -> float | None:
        """Return the rate at the best length, by the times of the nearest number of requests seen."""
        if not self._times:
            return None
        nearest = min(self._times, key=lambda number: abs(number - num_requests))
        return self._rate(self._best(nearest), nearest)

    def forget_times(self) -> None:
        """Leave each line of times the weight of one round."""
        for line in self._times.values():
            line.fade()

    def _best(self, num_requests: int) -> int:
        lengths = range(self._least_tokens, self._max_tokens + 1)
        return max(lengths, key=lambda length: self._rate(length, num_requests))

    def _rate(self, length: int, num_requests: int) -> float:
        line = self._times.get(num_requests)
        if line is None:
            return -abs(length - self._current)
        return self._acceptance.expected_tokens(length) / line.at(length)


class BranchBudget:
    """How many outcomes to prepare: as many as leave time to reach the wanted depth.

    Args:
        initial: Budget to begin with.
        least: Smallest budget.
        most: Largest budget.
    """

    def __init__(self, initial: int, *, least: int = 4, most: int = 32) -> None:
        self._value, self._least, self._most = float(initial), least, most
        self._was_deep = True

    @property
    def value(self) -> int:
        """The budget now."""
        return round(self._value)

    def observe(self, *, is_hit: bool, is_deep: bool) -> None:
        """Learn whether an outcome was predicted, and whether its continuation was as deep as wanted.

        A shallow hit takes a twentieth off; a miss after a deep hit adds as much.
        """
        if not is_hit and self._was_deep:
            self._value = min(self._most, self._value * 1.05)
        elif is_hit and not is_deep:
            self._value = max(self._least, self._value * 0.95)
        if is_hit:
            self._was_deep = is_deep
