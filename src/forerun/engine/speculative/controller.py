"""Chooses how far to speculate, from what this run has measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from forerun.engine.speculative.load import Load
from forerun.engine.speculative.round_times import RoundTimes

_DECAY = 0.98
"""Weight that a round keeps after each further round: the last 50 rounds count most."""
_PRIOR_ACCEPTANCE = 0.6
_PRIOR_WEIGHT = 2.0
_EXPLORE_EVERY, _EXPLORE_ALONE, _EXPLORE_SELDOM = 12, 24, 192
"""Rounds from one trial of another length to the next: at first, and at most, for one request and for several, where a
trial costs more. One that changes nothing doubles the rounds to the next."""
_HOPELESS = 0.8
"""A trial waits as long as it may where no more than this share of the best rate is to be expected, by passes that are
known."""
_WORTH_DRAFTING = 1.02
"""Drafts must promise so many times the tokens of none: noise favours what is seldom tried."""
_FIRST_PLAIN = 2
"""Rounds without a draft with which several requests begin, when there were none much like them before."""
_LEAST_MEASURED = 8
"""Rounds from which on a rate is what was measured rather than what is expected."""
_TRIAL_SHARE = 0.01
"""Part of the time that may go into reading texts for a trial of drafts, where none are made."""
_ALONE = (0, 0)
"""The kind of every load of one request."""


class Controller(Protocol):
    """Sets the length of drafts, and learns from every round."""

    def num_speculative_tokens(self, load: Load) -> int:
        """Return the most draft tokens per request for a round of this load; 0 decodes without a draft."""
        ...

    def observe(
        self,
        *,
        load: Load,
        proposed: Sequence[int],
        accepted: Sequence[int],
        round_s: float,
        forward_s: float,
        num_new: int = 0,
    ) -> None:
        """Learn of a round.

        Args:
            load: What took part.
            proposed: How many draft tokens each request had.
            accepted: How many of them were accepted.
            round_s: The round's time.
            forward_s: The target's part of it.
            num_new: How many of the requests came since the last round that was observed, or changed their way: a draft
                may have their texts to read.
        """
        ...

    def rate(self, load: Load) -> float | None:
        """Return the tokens per second and request to expect of a load; ``None``: nothing is known of any like it."""
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

    def num_speculative_tokens(self, load: Load) -> int:
        """Return K."""
        return self._num_speculative_tokens

    def observe(
        self,
        *,
        load: Load,
        proposed: Sequence[int],
        accepted: Sequence[int],
        round_s: float,
        forward_s: float,
        num_new: int = 0,
    ) -> None:
        """Nothing to learn."""

    def rate(self, load: Load) -> float | None:
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
class _Course:
    """How it went with loads of one kind."""

    best: int = -1
    interval: int = _EXPLORE_EVERY
    num_rounds: int = 0
    num_trials: int = 0
    num_measured: int = 0
    tokens: float = 0.0
    time_s: float = 0.0
    new_texts: float = 0.0
    idle_s: float = 0.0


class AdaptiveController:
    r"""Picks the length with the most tokens per second, by measured acceptance and measured time.

    .. math:: K^* = \arg\max_K \frac{1 + \sum_{i \le K} \prod_{j \le i} a_j}{t(n, c, K)}

    :math:`a_j` is the share of accepted tokens among those at place j that were looked at. The time of a round of n
    requests that see c cached tokens is that of a pass of :math:`n (1 + K)` rows over them, known from rounds of any
    load, and a line in K for the rest (drafting and waiting alike, whatever the method). To it comes, with drafts,
    what a draft takes to read texts that are new to it, as many as come along. So a load never seen before begins
    near its best length: as the batch grows and rows stop being free, drafts get shorter, down to none; as texts grow
    and reading them is what takes time, they get longer again.
    Now and then a neighbouring length is tried, so that the estimates stay fresh; no draft at all is a length too, so
    a draft that does not pay is switched off, and tried again from time to time, more seldom the more it has to read
    for that. Several requests of a new kind begin without drafts, and go without for two rounds now and then: a pass
    of long drafts does not tell whether its rows or its texts take the time, and whoever blames the texts never stops
    drafting.

    Args:
        acceptance: What is known of the draft.
        least_tokens: Shortest draft to consider; 0 for none at all.
        max_tokens: Longest draft.
        initial: Length to begin with, for one request.
    """

    def __init__(self, acceptance: Acceptance, *, least_tokens: int, max_tokens: int, initial: int) -> None:
        self._acceptance, self._least_tokens, self._max_tokens = acceptance, least_tokens, max_tokens
        self._initial, self._was_idle, self._num_unread = initial, False, 0
        self._times = RoundTimes()
        self._courses: dict[tuple[int, int], _Course] = {}

    def num_speculative_tokens(self, load: Load) -> int:
        """Return the best length known, or sometimes a neighbour of it."""
        course, best = self._course(load), self._best(load)
        course.num_rounds += 1
        if load.num_requests > 1 and course.num_measured < _FIRST_PLAIN:
            return self._least_tokens
        return self._choose(course, best, load)

    def observe(
        self,
        *,
        load: Load,
        proposed: Sequence[int],
        accepted: Sequence[int],
        round_s: float,
        forward_s: float,
        num_new: int = 0,
    ) -> None:
        """Update acceptance at each place that was looked at, and what is known of times."""
        self._acceptance.observe(proposed=proposed, accepted=accepted)
        length = sum(proposed) / load.num_requests
        self._num_unread = min(load.num_requests, self._num_unread + num_new)
        self._times.add_pass(load, length, forward_s)
        if length and (self._was_idle or self._num_unread):
            self._times.add_reading(load, length, round_s - forward_s, num_texts=self._num_unread)
        else:
            self._times.add_other(load, length, round_s - forward_s)
        expected = sum(self._acceptance.expected_tokens(number) for number in proposed) / load.num_requests
        course = self._course(load)
        course.num_measured += 1
        course.tokens, course.time_s = _DECAY * course.tokens + expected, _DECAY * course.time_s + round_s
        # Those that a kind of load begins with do not come along while it lasts.
        come_along = num_new if course.num_measured > 1 else 0
        course.new_texts = _DECAY * course.new_texts + come_along / load.num_requests
        self._was_idle = length == 0
        course.idle_s = course.idle_s + round_s if self._was_idle else 0.0
        self._num_unread = self._num_unread if self._was_idle else 0

    def rate(self, load: Load) -> float | None:
        """Return the rate that was measured at such a load; before, the one to expect at the best length.

        Of several requests with far longer texts than were ever timed nothing is promised.
        """
        course = self._course(load)
        if course.num_measured >= _LEAST_MEASURED:
            return course.tokens / course.time_s
        if load.num_requests > 1 and not self._times.has_texts_like(load):
            return None
        best = self._best(load)
        return None if self._times.at(load, best) is None else self._rate(best, load)

    def forget_times(self) -> None:
        """Leave what was measured of rounds the weight of one."""
        self._times.fade()
        for course in self._courses.values():
            if course.time_s > 0:
                scale = min(1.0, 1 / max(1, course.num_measured))
                course.tokens, course.time_s = scale * course.tokens, scale * course.time_s
                course.new_texts *= scale

    def _course(self, load: Load) -> _Course:
        """Return how it went at such loads; one request by itself is followed from text to text."""
        return self._courses.setdefault(load.kind if load.num_requests > 1 else _ALONE, _Course())

    def _choose(self, course: _Course, best: int, load: Load) -> int:
        """Return the best length; when a trial is due, another for two rounds: in the first a draft catches up."""
        seldom = _EXPLORE_ALONE if load.num_requests == 1 else _EXPLORE_SELDOM
        if best != course.best:
            course.best, course.interval, course.num_rounds = best, _EXPLORE_EVERY, 0
        if course.num_rounds < course.interval:
            return best
        if best == 0 and self._was_idle and not self._can_afford_to_read(course, load):
            course.num_rounds = course.interval - 1
            return best
        if course.num_rounds == course.interval:
            course.num_trials += 1
            if self._is_hopeless(course, best, load):
                course.num_trials += 1
            if course.interval < seldom and self._is_hopeless(course, best, load):
                course.interval = seldom
                return best
        else:
            course.interval, course.num_rounds = min(2 * course.interval, seldom), 0
        return self._neighbour(course, best, load)

    def _can_afford_to_read(self, course: _Course, load: Load) -> bool:
        """Return whether there were no drafts for long enough, against what it takes to read what a draft did not."""
        is_alone = load.num_requests == 1
        return is_alone or self._times.reading_s(load, self._num_unread) <= _TRIAL_SHARE * course.idle_s

    def _is_hopeless(self, course: _Course, best: int, load: Load) -> bool:
        """Return whether the length whose turn it is can't be much good; then it is the next one's turn."""
        length = self._neighbour(course, best, load)
        is_known = self._times.knows(load, length)
        return is_known and self._rate(length, load) < _HOPELESS * self._rate(best, load)

    def _neighbour(self, course: _Course, best: int, load: Load) -> int:
        """Return one more, one less, and, where drafts are long for several requests, none, each in turn."""
        if best == 0:  # more is to be learned from two tokens, but they cost the more the more requests there are
            return min(2 if load.num_requests == 1 else 1, self._max_tokens)
        lengths = [best - 1, best + 1] if load.num_requests == 1 or best == 1 else [best - 1, 0, best + 1]
        return min(self._max_tokens, max(self._least_tokens, lengths[course.num_trials % len(lengths)]))

    def _best(self, load: Load) -> int:
        if self._times.at(load, 0) is None:
            start = self._initial if load.num_requests == 1 else (1 + self._initial) // load.num_requests - 1
            return min(self._max_tokens, max(self._least_tokens, start))
        rates = [self._rate(length, load) for length in range(self._least_tokens, self._max_tokens + 1)]
        best = max(rates)
        return self._least_tokens + (rates.index(best) if best > _WORTH_DRAFTING * rates[0] else 0)

    def _rate(self, length: int, load: Load) -> float:
        time_s, expected = self._times.at(load, length) or 1.0, self._acceptance.expected_tokens(length)
        if length:
            course = self._course(load)
            new_per_token = course.new_texts / course.tokens if course.tokens else 0.0
            time_s += self._times.reading_s(load, load.num_requests * expected * new_per_token)
        return expected / time_s


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
