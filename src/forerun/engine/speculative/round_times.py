"""The time of a round by how many requests take part and how long their drafts are, from the rounds there were."""

import math
from dataclasses import dataclass

from forerun.engine.speculative.time_line import TimeLine

_BUCKETS_PER_OCTAVE = 4
_NEW_WEIGHT = 0.25
"""Weight of a pass against those before it of about as many rows."""
_DRIFT_WEIGHT = 0.1
_MOST_CHANGE = 2.0
"""A pass counts as this many times slower or faster than the one before it, at most."""


@dataclass(slots=True)
class _Bucket:
    num_rows: float
    pass_s: float
    drift: float


def _place(num_rows: int) -> int:
    return int(_BUCKETS_PER_OCTAVE * math.log2(num_rows))


class PassTimes:
    """Time of a pass by its number of rows.

    Measured where it was, interpolated between; as long for fewer rows than were ever seen (the weights are read all
    the same), and in proportion for more. What was measured while the machine was faster or slower is scaled by how
    much the passes since then have changed.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self._drift = 1.0

    def add(self, num_rows: int, pass_s: float) -> None:
        """Learn the time of a pass."""
        place = _place(num_rows)
        bucket = self._buckets.get(place)
        if bucket is None:
            self._buckets[place] = _Bucket(num_rows, pass_s, self._drift)
            return
        expected = self._time(bucket)
        change = min(_MOST_CHANGE, max(1 / _MOST_CHANGE, pass_s / expected))
        self._drift *= change**_DRIFT_WEIGHT
        bucket.num_rows += _NEW_WEIGHT * (num_rows - bucket.num_rows)
        bucket.pass_s, bucket.drift = expected * (1 + _NEW_WEIGHT * (change - 1)), self._drift

    def covers(self, num_rows: int) -> bool:
        """Return whether a pass of about as many rows or more was seen."""
        return any(_place(num_rows) <= place for place in self._buckets)

    def at(self, num_rows: float) -> float | None:
        """Return the time to expect of a pass; ``None``: none was seen."""
        below = above = None
        for bucket in self._buckets.values():
            if bucket.num_rows <= num_rows and (below is None or bucket.num_rows > below.num_rows):
                below = bucket
            if bucket.num_rows >= num_rows and (above is None or bucket.num_rows < above.num_rows):
                above = bucket
        if below is None or above is None:
            nearest = below or above
            return None if nearest is None else self._time(nearest) * max(1.0, num_rows / nearest.num_rows)
        share = (num_rows - below.num_rows) / max(1e-9, above.num_rows - below.num_rows)
        return self._time(below) + share * (self._time(above) - self._time(below))

    def _time(self, bucket: _Bucket) -> float:
        return bucket.pass_s * self._drift / bucket.drift


class RoundTimes:
    """Time of a round: the target's pass, and what goes on beside it.

    The latter is a line in the length of drafts from 1 on, and a level of its own without drafts: to draft at all costs
    something, whatever the length.
    """

    def __init__(self) -> None:
        self._passes = PassTimes()
        self._drafted: dict[int, TimeLine] = {}
        self._plain: dict[int, TimeLine] = {}

    def add(self, num_requests: int, length: float, *, forward_s: float, other_s: float | None) -> None:
        """Learn the times of a round.

        Args:
            num_requests: Requests that took part.
            length: Mean length of their drafts.
            forward_s: Time of the target's pass.
            other_s: The rest of the round; ``None``: it is not like that of other rounds.
        """
        self._passes.add(round(num_requests * (1 + length)), forward_s)
        if other_s is not None:
            lines = self._drafted if length else self._plain
            lines.setdefault(load_class(num_requests), TimeLine()).add(length, other_s)

    def covers(self, num_requests: int, length: int) -> bool:
        """Return whether the pass of such a round is known from one as large, not guessed from smaller ones."""
        return self._passes.covers(num_requests * (1 + length))

    def at(self, num_requests: int, length: int) -> float | None:
        """Return the time to expect of a round; ``None``: nothing is known."""
        pass_s = self._passes.at(num_requests * (1 + length))
        if pass_s is None:
            return None
        return pass_s + self._other(num_requests, length)

    def _other(self, num_requests: int, length: int) -> float:
        """Return the time to expect beside the pass: with drafts, as long as without until one was timed."""
        lines = (self._drafted or self._plain) if length else self._plain
        if not lines:
            return 0.0
        wanted = load_class(num_requests)
        return lines[min(lines, key=lambda known: abs(known - wanted))].at(length)

    def fade(self) -> None:
        """Let what is timed next outweigh what was timed before."""
        for line in (*self._drafted.values(), *self._plain.values()):
            line.fade()


def load_class(num_requests: int) -> int:
    """Return a number for loads that are much alike: 1, 2, 3 to 4, 5 to 8 requests, and so on."""
    return (num_requests - 1).bit_length()
