"""The time of a pass of the target by its rows and the texts they see, from the passes there were."""

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from forerun.engine.speculative.load import Load

_KNOTS = (1, *(number << doublings for doublings in range(12) for number in (2, 3)))
"""Rows at which the line bends. With powers of two alone a kink between two of them, as where arithmetic begins to
count, is smoothed over, and drafts end up a token too long."""
_READ, _SEEN = len(_KNOTS), len(_KNOTS) + 1
"""Places of the state behind those of the times by rows."""
_NOISE = 0.1
"""Passes of one size differ by this part of their time."""
_COMMON_DRIFT, _OWN_DRIFT = 0.02, 0.01
"""From pass to pass the machine gets faster or slower by the first part, and one kind of pass by the second."""
_LEVEL, _STEP = 0.5, 0.25
"""How far the first guess may be off: all of it, and each doubling of the rows by itself."""
_CONTEXT = 2e-4
"""The part of the first pass that a token of a text adds is of this size, or nothing."""
_MOST_CHANGE, _MOST_FALL = 2.0, 3.0
"""A pass counts as the first many times slower or faster than expected at most. One the second many times faster shows
that those before it were something else, such as the compilation of a kernel."""
_MOST_LATE, _MOST_EARLY = 1.5, 3.0
"""A pass counts as no more of a surprise than so many standard deviations: it can be held up, but not sped up."""
_PATIENCE, _MISFIT, _DOUBT = 0.2, 2.0, 1.3
"""Weight of a surprise's square, in variances, against those before it; from which mean on the filter doubts what it
knew; and by what factor its variances then grow with each pass."""
_KNOWN = 0.12
"""What is expected of a pass is known if its standard deviation is no more than this part of it."""
_MOST_DOUBT = 1.0
"""No value's standard deviation grows beyond this part of it by doubt, or beyond what it was at first."""
_LEAST_SHARE = 0.1
"""So much of the first pass's time any pass takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassSize:
    """What the time of a pass depends on.

    Attributes:
        num_rows: Its rows, at least one.
        num_read: Tokens of the cache that it reads, each request's once.
        num_seen: Tokens of the cache that its rows see, each row counted.
    """

    num_rows: float
    num_read: float
    num_seen: float

    @classmethod
    def of(cls, load: Load, length: float) -> "PassSize":
        """Return the size of a pass that verifies drafts of a length, on average."""
        return cls(
            num_rows=load.num_requests * (1 + length),
            num_read=load.num_context,
            num_seen=load.num_context * (1 + length),
        )


class PassTimes:
    r"""Time of a pass, learned from every pass, each by itself.

    .. math:: t = f(\text{rows}) + b \cdot \text{read} + e \cdot \text{seen}, \qquad f' \ge 0, \quad b, e \ge 0

    f is a line between 1, 2, 3, 4, 6, 8, 12 and so on. Where reading is all that texts cost, as many rows as one likes
    look at what is read once, and e is 0; where arithmetic counts, or each row reads for itself, b is 0. Which it is
    depends on the machine, on its threads, and on what the texts have in common, so it is learned like f: by a Kalman
    filter whose state are the values of f, b and e. It begins with the first pass: as long for fewer rows (the weights
    are read all the same), in proportion for more, nothing for texts. As time goes by, all of it gets faster or slower
    together, and a bit each by itself; so what was measured while the machine was quicker is not forgotten, but scaled.
    """

    def __init__(self) -> None:
        self._state = np.zeros(_SEEN + 1)
        self._covariance = np.zeros((_SEEN + 1, _SEEN + 1))
        self._first_deviations = np.zeros(_SEEN + 1)
        self._least_s, self._misfit = 0.0, 1.0
        self._expected: list[float] = []
        """The state, where single values are read fast; empty before the first pass."""

    def add(self, size: PassSize, pass_s: float) -> None:
        """Learn the time of a pass."""
        if not self._expected:
            self._begin(size, pass_s)
        expected_s = self._at(size)
        if _MOST_FALL * pass_s < expected_s:
            self._rescale(pass_s / expected_s)
            expected_s = pass_s
        self._covariance += _COMMON_DRIFT**2 * np.outer(self._state, self._state)
        drift = (_OWN_DRIFT * self._state) ** 2
        drift[[_READ, _SEEN]] += (_COMMON_DRIFT * _CONTEXT * self._state[0]) ** 2
        self._covariance.flat[:: len(self._state) + 1] += drift
        places, weights = _parts(size)
        shared = self._covariance[:, places] @ weights
        variance = float(shared[places] @ weights) + (_NOISE * expected_s) ** 2
        change = min(_MOST_CHANGE, max(1 / _MOST_CHANGE, pass_s / expected_s))
        deviations = (change - 1) * expected_s / math.sqrt(variance)
        self._misfit += _PATIENCE * (min(_MOST_EARLY, abs(deviations)) ** 2 - self._misfit)
        surprise = min(_MOST_LATE, max(-_MOST_EARLY, deviations))
        self._state += shared * (surprise / math.sqrt(variance))
        self._reduce(shared / variance, places, weights, noise_s=_NOISE * expected_s)
        if self._misfit > _MISFIT:
            self._doubt()
        self._obey()
        self._expected = self._state.tolist()

    def knows(self, size: PassSize) -> bool:
        """Return whether the time of a pass is known from passes much like it."""
        if not self._expected:
            return False
        places, weights = _parts(size)
        variance = float(self._covariance[np.ix_(places, places)] @ weights @ weights)
        return variance <= (_KNOWN * self._at(size)) ** 2

    def at(self, size: PassSize) -> float | None:
        """Return the time to expect of a pass; ``None``: none was seen."""
        return self._at(size) if self._expected else None

    def _at(self, size: PassSize) -> float:
        places, weights = _parts(size)
        return max(
            self._least_s, sum(self._expected[place] * weight for place, weight in zip(places, weights, strict=True))
        )

    def _begin(self, size: PassSize, pass_s: float) -> None:
        """Guess everything from the first pass, and how wrong that may be."""
        guess = pass_s * np.maximum(1.0, np.array(_KNOTS) / size.num_rows)
        away = np.log2(_KNOTS) - math.log2(size.num_rows)
        steps = np.where(np.outer(away, away) > 0, np.minimum.outer(abs(away), abs(away)), 0.0)
        self._state[:_READ] = guess
        self._covariance[:_READ, :_READ] = (_LEVEL**2 + _STEP**2 * steps) * np.outer(guess, guess)
        for place in (_READ, _SEEN):
            self._covariance[place, place] = (_CONTEXT * pass_s) ** 2
        self._least_s = _LEAST_SHARE * pass_s
        self._first_deviations = np.sqrt(np.diag(self._covariance))
        self._expected = self._state.tolist()

    def _reduce(self, gain: np.ndarray, places: list[int], weights: list[float], *, noise_s: float) -> None:
        """Take from the covariance what a pass has told, in Joseph's form: rounding leaves no negative variance."""
        kept = np.eye(len(self._state))
        kept[:, places] -= np.outer(gain, weights)
        self._covariance = kept @ self._covariance @ kept.T + np.outer(gain, gain) * noise_s**2

    def _doubt(self) -> None:
        """Let the variances grow, each as far as it may: what is never seen would else grow without end."""
        limits = np.maximum(_MOST_DOUBT * np.abs(self._state), self._first_deviations)
        deviations = np.sqrt(np.maximum(np.diag(self._covariance), np.finfo(float).tiny))
        factors = np.minimum(math.sqrt(_DOUBT), np.maximum(1.0, limits / deviations))
        self._covariance *= np.outer(factors, factors)

    def _rescale(self, factor: float) -> None:
        self._state *= factor
        self._covariance *= factor**2
        self._first_deviations *= factor
        self._least_s *= factor

    def _obey(self) -> None:
        """Move to the nearest state in which more rows take no less, and texts take time, not give it."""
        for place, below in _ORDER:
            excess = self._state[place] - (self._state[below] if below >= 0 else 0.0)
            if excess < 0:
                shared = self._covariance[place] - (self._covariance[below] if below >= 0 else 0.0)
                spread = shared[place] - (shared[below] if below >= 0 else 0.0)
                if spread > 0:
                    self._state -= shared * (excess / spread)


_ORDER = (*((place, place - 1) for place in range(1, _READ)), (_READ, -1), (_SEEN, -1))


def _parts(size: PassSize) -> tuple[list[int], list[float]]:
    """Return the places of the state that a pass takes its time from, and how much of each."""
    knot = min(_READ - 2, bisect_right(_KNOTS, size.num_rows) - 1)
    share = (size.num_rows - _KNOTS[knot]) / (_KNOTS[knot + 1] - _KNOTS[knot])
    return [knot, knot + 1, _READ, _SEEN], [1 - share, share, size.num_read, size.num_seen]
