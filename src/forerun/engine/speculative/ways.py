"""Ways to decode that an engine has ready, and the choice among them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from forerun.core.env import pin_process
from forerun.core.protocols import LanguageModel
from forerun.core.rows import Rows
from forerun.engine.config import Method
from forerun.engine.speculative.controller import Controller
from forerun.engine.speculative.draft_round import RoundModel
from forerun.engine.speculative.load import Load
from forerun.engine.speculative.speculator import Speculator

_TRIAL_TOKENS = 3
_NUM_TRIALS = 3
_LEAST_INTERVAL, _MOST_INTERVAL = 3, 48
"""Calls from one trial of another way to the next."""
_WORTH_TRYING = 0.7
"""A way that was slower than this, against the best, is not tried again."""
_WORTH_MOVING = 1.2
"""Among several requests, another way is tried if it is expected to be this many times faster: a trial takes as long as
many rounds of all of them, and what is known of that way was measured at another time."""
_MOST_KEPT = 8
"""Calls for which several requests are left on another way before the usual one is timed again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A method with what it needs.

    Attributes:
        method: ``none``, ``sequential`` or ``ssd``.
        speculator: Makes the drafts.
        controller: Limits them.
        num_threads: Threads of the target.
        pinned_to: Cores of this process; empty to leave it where it is.
        num_cores: Cores in use, the drafter's included.
    """

    method: Method
    speculator: Speculator
    controller: Controller
    num_threads: int
    pinned_to: tuple[int, ...]
    num_cores: int

    def enter(self) -> None:
        """Give this process the threads and cores of this way."""
        torch.set_num_threads(self.num_threads)
        if self.pinned_to:
            pin_process(*self.pinned_to)

    def promised_round_s(self, target: LanguageModel, draft: LanguageModel | RoundModel) -> float:
        """Return the time of a round with three draft tokens, as timed now; SSD is taken to hide them all.

        Effects:
            Enters the way, and writes to the first slots of both caches.
        """
        self.enter()
        draft_s = 0.0 if self.method == "ssd" else _pass_s(draft, num_rows=1)
        return _pass_s(target, num_rows=1 + _TRIAL_TOKENS) + _TRIAL_TOKENS * draft_s


def _pass_s(model: LanguageModel | RoundModel, *, num_rows: int) -> float:
    """Return the least time of a few passes."""
    times: list[float] = []
    for _ in range(_NUM_TRIALS):
        started = time.perf_counter()
        model.forward(Rows.chains([(0, 0, [0] * num_rows)]))
        times.append(time.perf_counter() - started)
    return min(times)


@dataclass(slots=True)
class _Stint:
    """A way that several requests are on.

    Attributes:
        way: The way.
        kind: How many they are, roughly.
        rate_to_beat: Of the usual way, as it was just before.
        num_calls: Choices since.
    """

    way: Way
    kind: int
    rate_to_beat: float = 0.0
    num_calls: int = 0


class WayChooser:
    """Keeps to the way with the most tokens per second, and tries another now and then.

    Several requests begin with the way that has the most threads for the target, which with drafts of no length is
    decoding without a draft. Another way, if much more is expected of it over texts of such length, gets one call to
    show it: it is kept if it was faster than the first way just before, else the calls until the next trial double.

    Two ways are compared only right after a trial, when both have just been timed: what was measured while the machine
    was quieter, or on easier text, says nothing of now. A trial that changes nothing doubles the calls to the next.

    Args:
        ways: At least one; the one to begin with first. Each is tried once.
    """

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = list(ways)
        self._far_slower: list[Way] = []
        self._stint: _Stint | None = None
        self._patience = 1
        self._last: Way | None = None
        self._interval = self._num_calls_left = 1

    def choose(self, load: Load) -> Way:
        """Return the way for the next call; one that can't draft any more only if there is no other.

        Args:
            load: What is to be decoded.
        """
        ready = [way for way in self._ways if way.speculator.is_alive] or self._ways
        if load.num_requests > 1:
            self._stint = self._next_stint(ready, load)
            return self._stint.way
        self._stint = None
        if self._last is None:
            self._last = ready[0]
            return self._last
        if self._last is not self._ways[0] and self._last in ready and self._ways[0] in ready:
            self._compare(self._last, load)
            ready = [way for way in self._ways if way in ready]
        rivals = [way for way in ready[1:] if not any(way is other for other in self._far_slower)]
        self._num_calls_left -= 1
        if rivals and self._num_calls_left <= 0:
            rivals[0].controller.forget_times()
            self._last = rivals[0]
        else:
            self._last = ready[0]
        return self._last

    def _next_stint(self, ways: Sequence[Way], load: Load) -> "_Stint":
        """Return the way for several requests, and since when they have had it."""
        usual, last = max(ways, key=lambda way: way.num_threads), self._stint
        anew = _Stint(way=usual, kind=load.kind[0])
        if last is None or last.kind != anew.kind or all(last.way is not way for way in ways):
            return anew
        last.num_calls += 1
        rate = last.way.controller.rate(load)
        if last.way is usual:
            rivals = [(way.controller.rate(load) or 0.0, way) for way in ways if way is not usual]
            promised, rival = max(rivals, key=lambda item: item[0], default=(0.0, usual))
            if rate is None or promised <= _WORTH_MOVING * rate or last.num_calls < self._patience:
                return last
            rival.controller.forget_times()
            return _Stint(way=rival, kind=anew.kind, rate_to_beat=rate)
        is_better = rate is not None and rate > last.rate_to_beat
        if is_better and last.num_calls < _MOST_KEPT:
            return last
        self._patience = 1 if is_better else min(2 * self._patience, _MOST_INTERVAL)
        usual.controller.forget_times()
        return anew

    def _compare(self, tried: Way, load: Load) -> None:
        """Rank the way that was just tried against the best."""
        best, others = self._ways[0], [way for way in self._ways if way is not tried]
        rate, best_rate = tried.controller.rate(load), best.controller.rate(load)
        is_better = rate is not None and best_rate is not None and rate > best_rate
        self._ways = [tried, *others] if is_better else [*others, tried]
        self._interval = _LEAST_INTERVAL if is_better else min(2 * self._interval, _MOST_INTERVAL)
        self._num_calls_left = self._interval
        if rate is not None and best_rate is not None and min(rate, best_rate) < _WORTH_TRYING * max(rate, best_rate):
            self._far_slower.append(best if is_better else tried)
