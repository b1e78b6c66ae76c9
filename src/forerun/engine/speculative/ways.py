"""Ways to decode that an engine has ready, and the choice among them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from forerun.core.env import pin_process
from forerun.core.protocols import LanguageModel
from forerun.core.rows import Rows
from forerun.engine.config import Method
from forerun.engine.speculative.controller import Controller
from forerun.engine.speculative.speculator import Speculator

_TRIAL_TOKENS = 3
_NUM_TRIALS = 5
_TRY_ANOTHER_EVERY = 24
_WORTH_TRYING = 0.7
"""A way that was slower than this, against the best, is not tried again."""


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

    def promised_round_s(self, target: LanguageModel, draft: LanguageModel) -> float:
        """Return the time of a round with three draft tokens, as timed now; SSD is taken to hide them all.

        Effects:
            Enters the way, and writes to the first slots of both caches.
        """
        self.enter()
        draft_s = 0.0 if self.method == "ssd" else _pass_s(draft, num_rows=1)
        return _pass_s(target, num_rows=1 + _TRIAL_TOKENS) + _TRIAL_TOKENS * draft_s


def _pass_s(model: LanguageModel, *, num_rows: int) -> float:
    """Return the median time of a pass."""
    times: list[float] = []
    for _ in range(_NUM_TRIALS):
        started = time.perf_counter()
        model.forward(Rows.chains([(0, 0, [0] * num_rows)]))
        times.append(time.perf_counter() - started)
    return median(times)


def choose_way(ways: Sequence[Way], *, num_calls: int, num_requests: int) -> Way:
    """Choose the way with the most expected tokens per second for the next call.

    Each is tried in turn first. Now and then another than the best is tried, if it was not far slower.

    Args:
        ways: At least one; the one to try first comes first.
        num_calls: Calls decoded before.
        num_requests: Requests to be decoded side by side.
    """
    rates = [way.controller.rate(num_requests) for way in ways]
    for way, rate in zip(ways, rates, strict=True):
        if rate is None:
            return way
    known = [(rate, way) for way, rate in zip(ways, rates, strict=True) if rate is not None]
    best_rate, best = max(known, key=lambda item: item[0])
    others = [way for rate, way in known if way is not best and rate > _WORTH_TRYING * best_rate]
    if others and num_calls % _TRY_ANOTHER_EVERY == 0:
        return others[num_calls // _TRY_ANOTHER_EVERY % len(others)]
    return best
