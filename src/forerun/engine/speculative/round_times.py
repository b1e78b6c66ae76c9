"""The time of a round by how many requests take part, their texts and their drafts, from the rounds there were."""

from collections.abc import Mapping

from forerun.engine.speculative.load import Load
from forerun.engine.speculative.pass_times import PassSize, PassTimes
from forerun.engine.speculative.reading_time import ReadingTime
from forerun.engine.speculative.time_line import TimeLine


class RoundTimes:
    """Time of a round: the target's pass, and what goes on beside it.

    The latter is a line in the length of drafts from 1 on, and a level of its own without drafts: to draft at all costs
    something, whatever the length.
    """

    def __init__(self) -> None:
        self._passes = PassTimes()
        self._drafted: dict[int, TimeLine] = {}
        self._plain: dict[int, TimeLine] = {}
        self._reading = ReadingTime()
        self._longest = 0.0

    def add_pass(self, load: Load, length: float, pass_s: float) -> None:
        """Learn the time of the target's pass in a round of this load, with drafts of this mean length."""
        self._passes.add(PassSize.of(load, length), pass_s)
        self._longest = max(self._longest, load.mean_context)

    def add_other(self, load: Load, length: float, other_s: float) -> None:
        """Learn the time of the rest of a round in which no draft had anything to read, or none was made."""
        lines = self._drafted if length else self._plain
        lines.setdefault(load.kind[0], TimeLine()).add(length, other_s)

    def add_reading(self, load: Load, length: float, other_s: float, *, num_texts: int) -> None:
        """Learn the time of the rest of a round in which a draft read so many texts first.

        Of 0 there is nothing to learn: it read the ends of some. Nor is there of one request: most are read ahead.
        """
        if num_texts and load.num_requests > 1:
            self._reading.add(num_texts * load.mean_context, max(0.0, other_s - self._other(load, length)))

    def reading_s(self, load: Load, num_texts: float) -> float:
        """Return the time that a draft takes to read so many texts of such a load; 0 until that was timed."""
        return self._reading.at(num_texts * load.mean_context)

    def knows(self, load: Load, length: int) -> bool:
        """Return whether the pass of such a round is known from some much like it, not guessed from others."""
        return self._passes.knows(PassSize.of(load, length))

    def has_texts_like(self, load: Load) -> bool:
        """Return whether rounds over texts half as long or longer were timed, of however many requests."""
        return load.mean_context <= 2 * self._longest

    def at(self, load: Load, length: int) -> float | None:
        """Return the time to expect of a round; ``None``: nothing is known."""
        pass_s = self._passes.at(PassSize.of(load, length))
        if pass_s is None:
            return None
        return pass_s + self._other(load, length)

    def _other(self, load: Load, length: float) -> float:
        """Return the time to expect beside the pass: with drafts, as long as without until one was timed."""
        lines = (self._drafted or self._plain) if length else self._plain
        return _nearest(lines, load).at(length) if lines else 0.0

    def fade(self) -> None:
        """Let what is timed next outweigh what was timed before."""
        for line in (*self._drafted.values(), *self._plain.values()):
            line.fade()


def _nearest(lines: Mapping[int, TimeLine], load: Load) -> TimeLine:
    """Return the line of the loads with the most similar number of requests; confirmed ones first."""
    return lines[min(lines, key=lambda kind: (not lines[kind].is_confirmed, abs(kind - load.kind[0])))]
