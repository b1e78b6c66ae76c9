"""Chooses how far to speculate, from what this run has measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from forerun.engine.speculative.round_times import RoundTimes, load_class
from forerun.engine.speculative.time_line import TimeLine

_DECAY = 0.98
"""Weight that a round keeps after each further round: the last 50 rounds count most."""
_PRIOR_ACCEPTANCE = 0.6
_PRIOR_WEIGHT = 2.0
_EXPLORE_EVERY, _EXPLORE_SELDOM = 12, 192
"""Rounds from one trial of another length to the next, where one request runs; where several do, at first, and at
most: there a trial costs more, and one that changes nothing doubles the rounds to the next."""
_HOPELESS = 0.8
"""A trial among several requests waits as long as it may where, by passes as large, no more than this share of the best
rate is to be expected."""
_WORTH_DRAFTING = 1.03
"""Among several requests drafts must promise so many times the tokens of none: noise favours what is seldom tried."""
_LEAST_MEASURED = 8
"""Rounds from which on a rate is what was measured rather than what is expected."""


class Controller(Protocol):
    """Sets the length of drafts, and learns from every round."""

    def num_speculative_tokens(self, num_requests: int) -> int:
        """Return the most draft tokens per request for a round of this many requests; 0 decodes without a draft."""
        ...

    def observe(
        self,
        *,
        proposed: Sequence[int],
        accepted: Sequence[int],
        round_s: float,
        forward_s: float,
        is_settled: bool = True,
    ) -> None:
        """Learn of a round.

        Args:
            proposed: How many draft tokens each request had.
            accepted: How many of them were accepted.
            round_s: The round's time.
            forward_s: The target's part of it.
            is_settled: Whether all requests took part in the round before it: else a draft had texts to read.
        """
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

    def observe(
        self,
        *,
        proposed: Sequence[int],
        accepted: Sequence[int],
        round_s: float,
        forward_s: float,
        is_settled: bool = True,
    ) -> None:
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


@dataclass(slots=True)
class _Load:
    """What is known of about so many requests side by side."""

    best: int = -1
    interval: int = _EXPLORE_EVERY
    num_rounds: int = 0
    num_trials: int = 0
    num_measured: int = 0
    tokens: float = 0.0
    time_s: float = 0.0


class AdaptiveController:
    r"""Picks the length with the most tokens per second, by measured acceptance and measured time.

    .. math:: K^* = \arg\max_K \frac{1 + \sum_{i \le K} \prod_{j \le i} a_j}{t(n, K)}

    :math:`a_j` is the share of accepted tokens among those at place j that were looked at. The time of a round of one
    request is a line in K (drafting, verification and waiting alike, whatever the method); of n requests it is the time
    of a pass of :math:`n (1 + K)` rows, known from rounds of any n, and a line for the rest. So a load never seen
    before begins near its best length: as the batch grows and rows stop being free, drafts get shorter, down to none.
    Now and then a neighbouring length is tried, so that the estimates stay fresh; no draft at all is a length too, so a
    draft that does not pay is switched off, and tried again from time to time.

    Args:
        acceptance: What is known of the draft.
        least_tokens: Shortest draft to consider; 0 for none at all.
        max_tokens: Longest draft.
        initial: Length to begin with, for one request.
    """

    def __init__(self, acceptance: Acceptance, *, least_tokens: int, max_tokens: int, initial: int) -> None:
        self._acceptance, self._least_tokens, self._max_tokens = acceptance, least_tokens, max_tokens
        self._initial, self._was_idle = initial, False
        self._alone = TimeLine()
        self._times = RoundTimes()
        self._loads: dict[int, _Load] = {}

    def num_speculative_tokens(self, num_requests: int) -> int:
        """Return the best length known, or sometimes a neighbour of it."""
        load, best = self._load(num_requests), self._best(num_requests)
        load.num_rounds += 1
        if num_requests > 1:
            return self._choose_among_many(load, best, num_requests)
        if load.num_rounds % _EXPLORE_EVERY:
            return best
        load.num_trials += 1
        return self._neighbour(load, best, first=2)

    def observe(
        self,
        *,
        proposed: Sequence[int],
        accepted: Sequence[int],
        round_s: float,
        forward_s: float,
        is_settled: bool = True,
    ) -> None:
        """Update acceptance at each place that was looked at, and what is known of times."""
        self._acceptance.observe(proposed=proposed, accepted=accepted)
        num_requests, length = len(proposed), sum(proposed) / len(proposed)
        load = self._load(num_requests)
        # A draft that was idle has to catch up, as one has that gets a new text.
        is_like_others = is_settled and (length == 0 or not self._was_idle)
        self._was_idle = length == 0
        self._times.add(
            num_requests, length, forward_s=forward_s, other_s=round_s - forward_s if is_like_others else None
        )
        if num_requests == 1:
            self._alone.add(length, round_s)
        expected = sum(self._acceptance.expected_tokens(number) for number in proposed) / num_requests
        load.num_measured += 1
        load.tokens, load.time_s = _DECAY * load.tokens + expected, _DECAY * load.time_s + round_s

    def rate(self, num_requests: int) -> float | None:
        """Return the rate that was measured at such a load; before, the one to expect at the best length."""
        load = self._loads.get(load_class(num_requests))
        if load is not None and load.num_measured >= _LEAST_MEASURED:
            return load.tokens / load.time_s
        best = self._best(num_requests)
        time_s = self._time(num_requests, best)
        return None if time_s is None else self._acceptance.expected_tokens(best) / time_s

    def forget_times(self) -> None:
        """Leave each line of times the weight of one round."""
        self._alone.fade()
        self._times.fade()
        for load in self._loads.values():
            if load.time_s > 0:
                scale = min(1.0, 1 / max(1, load.num_measured))
                load.tokens, load.time_s = scale * load.tokens, scale * load.time_s

    def _load(self, num_requests: int) -> _Load:
        return self._loads.setdefault(load_class(num_requests), _Load())

    def _choose_among_many(self, load: _Load, best: int, num_requests: int) -> int:
        """Return the best length; when a trial is due, a neighbour for two rounds: in the first a draft catches up."""
        if best != load.best:
            load.best, load.interval, load.num_rounds = best, _EXPLORE_EVERY, 0
        if load.num_rounds < load.interval:
            return best
        if load.num_rounds == load.interval:
            load.num_trials += 1
            if self._is_hopeless(load, best, num_requests):
                load.num_trials += 1
            if load.interval < _EXPLORE_SELDOM and self._is_hopeless(load, best, num_requests):
                load.interval = _EXPLORE_SELDOM
                return best
        else:
            load.interval, load.num_rounds = min(2 * load.interval, _EXPLORE_SELDOM), 0
        return self._neighbour(load, best, first=1)

    def _is_hopeless(self, load: _Load, best: int, num_requests: int) -> bool:
        """Return whether the neighbour whose turn it is can't be much good; then it is the other one's turn."""
        length = self._neighbour(load, best, first=1)
        is_known = self._times.covers(num_requests, length)
        return is_known and self._rate(length, num_requests) < _HOPELESS * self._rate(best, num_requests)

    def _neighbour(self, load: _Load, best: int, *, first: int) -> int:
        if best == 0:
            return min(first, self._max_tokens)
        step = 1 if load.num_trials % 2 else -1
        return min(self._max_tokens, max(self._least_tokens, best + step))

    def _best(self, num_requests: int) -> int:
        lengths = range(self._least_tokens, self._max_tokens + 1)
        if self._time(num_requests, 0) is None:
            start = self._initial if num_requests == 1 else (1 + self._initial) // num_requests - 1
            return min(self._max_tokens, max(self._least_tokens, start))
        best = max(lengths, key=lambda length: self._rate(length, num_requests))
        if num_requests == 1 or best == self._least_tokens:
            return best
        least_rate = self._rate(self._least_tokens, num_requests)
        is_worth_it = self._rate(best, num_requests) > _WORTH_DRAFTING * least_rate
        return best if is_worth_it else self._least_tokens

    def _rate(self, length: int, num_requests: int) -> float:
        return self._acceptance.expected_tokens(length) / (self._time(num_requests, length) or 1.0)

    def _time(self, num_requests: int, length: int) -> float | None:
        """Return the time to expect of a round."""
        if num_requests == 1:
            return self._alone.at(length) if self._alone.has_points else None
        return self._times.at(num_requests, length)


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
