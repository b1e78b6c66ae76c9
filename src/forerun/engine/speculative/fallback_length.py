"""How many tokens to draft on a miss, while the target waits."""

import time
from typing import Protocol

from forerun.engine.speculative.controller import Acceptance
from forerun.engine.speculative.time_line import TimeLine

_EXPLORE_EVERY = 12
_DECAY = 0.98


class FallbackLength(Protocol):
    """Sets the length of fallbacks, and learns from every round."""

    def choose(self, limit: int, *, num_missed: int = 1, num_requests: int = 1) -> int:
        """Return how many tokens to draft on a miss; 0 waits for nothing.

        Args:
            limit: Tokens at most, at least 1.
            num_missed: Requests that get as many, drafted together.
            num_requests: Requests that wait for it, those included.
        """
        ...

    def begin_round(self) -> None:
        """Take the time at which outcomes are looked up."""
        ...

    def learn_wait(self, num_tokens: int, wait_s: float) -> None:
        """Learn how long the target waited for a fallback of this length."""
        ...

    def begin_verification(self, num_proposed: int) -> None:
        """Take the time at which a verification of so many draft tokens begins."""
        ...

    def learn_outcome(self, num_accepted: int, *, fallback: int) -> None:
        """Learn how much of a draft was accepted.

        Args:
            num_accepted: Draft tokens accepted.
            fallback: Length of the draft if it was a fallback that the target waited for, else 0.
        """
        ...


class _Unlearning:
    """What a length that is always the same does with what it is told."""

    def begin_round(self) -> None:
        """Nothing to learn."""

    def learn_wait(self, num_tokens: int, wait_s: float) -> None:
        """Nothing to learn."""

    def begin_verification(self, num_proposed: int) -> None:
        """Nothing to learn."""

    def learn_outcome(self, num_accepted: int, *, fallback: int) -> None:
        """Nothing to learn."""


class OneLess(_Unlearning):
    """Always one token less than a prepared draft, for each costs a pass of the draft."""

    def choose(self, limit: int, *, num_missed: int = 1, num_requests: int = 1) -> int:
        """Return the limit less one, but at least 1."""
        return max(1, limit - 1)


class AsPrepared(_Unlearning):
    """Always as many tokens as a prepared draft has."""

    def choose(self, limit: int, *, num_missed: int = 1, num_requests: int = 1) -> int:
        """Return the limit."""
        return limit


class AdaptiveFallbackLength:
    r"""Picks the length that gains more tokens than the target would emit in the time it costs.

    A prepared draft is free; a fallback is not, for the target waits for every token of it. Its length is

    .. math:: n^* = \arg\max_n \sum_{1 \le i \le n} \prod_{j \le i} a_j - R \, \frac{N}{M} (w(n) + v M n)

    :math:`a_j` is the share of fallback tokens accepted at place j, w the time the target waits (0 for n = 0), v the
    time that a token adds to a verification, R the tokens per second of one request of late, N the requests that wait
    and M those of them that missed. Now and then a neighbouring length is tried, so that the estimates stay fresh.

    Args:
        most: Longest fallback.
        is_whole: Whether a fallback is as long as it may be, if there is one at all: where each length is a graph of
            its own.
    """

    def __init__(self, most: int, *, is_whole: bool = False) -> None:
        self._acceptance, self._is_whole = Acceptance(most), is_whole
        self._waits, self._verifications, self._rounds = TimeLine(), TimeLine(), TimeLine()
        self._num_tokens = self._num_rounds = 0.0
        self._num_choices = 0
        self._round_began = self._verification_began = 0.0
        self._num_proposed = 0

    def choose(self, limit: int, *, num_missed: int = 1, num_requests: int = 1) -> int:
        """Return the best length known, or sometimes another; at first the limit if whole, else one less."""
        self._num_choices += 1
        if not (self._waits.has_points and self._verifications.has_points):
            return limit if self._is_whole else max(1, limit - 1)
        lengths = (0, limit) if self._is_whole else range(limit + 1)
        best = max(lengths, key=lambda length: self._gain(length, num_missed=num_missed, num_requests=num_requests))
        if self._num_choices % _EXPLORE_EVERY == 0:
            if self._is_whole:
                return limit
            step = 1 if best == 0 or self._num_choices % (2 * _EXPLORE_EVERY) else -1
            return min(limit, best + step)
        return best

    def begin_round(self) -> None:
        """Take the time at which outcomes are looked up."""
        self._round_began = time.perf_counter()

    def learn_wait(self, num_tokens: int, wait_s: float) -> None:
        """Learn how long the target waited for a fallback of this length."""
        self._waits.add(num_tokens, wait_s)

    def begin_verification(self, num_proposed: int) -> None:
        """Take the time at which a verification of so many draft tokens begins."""
        self._verification_began, self._num_proposed = time.perf_counter(), num_proposed

    def learn_outcome(self, num_accepted: int, *, fallback: int) -> None:
        """Learn acceptance, and the times of the round; R is that of one request."""
        now = time.perf_counter()
        self._verifications.add(self._num_proposed, now - self._verification_began)
        self._num_tokens = _DECAY * self._num_tokens + num_accepted + 1
        self._num_rounds = _DECAY * self._num_rounds + 1
        self._rounds.add(0, now - self._round_began)
        if fallback > 0:
            self._acceptance.observe(proposed=[fallback], accepted=[num_accepted])

    def _gain(self, length: int, *, num_missed: int, num_requests: int) -> float:
        """Return the tokens that one that missed gains over no fallback, less those that its time would have given."""
        if length == 0:
            return 0.0
        added_s = self._verifications.at(num_missed * length) - self._verifications.at(0)
        tokens_per_s = num_requests / num_missed * self._num_tokens / self._num_rounds / self._rounds.at(0)
        cost = tokens_per_s * (self._waits.at(length) + added_s)
        return self._acceptance.expected_tokens(length) - 1 - cost
