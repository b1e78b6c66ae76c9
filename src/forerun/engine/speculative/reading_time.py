"""What it takes a draft to read texts that are new to it, as measured of late."""

_DECAY = 0.9
"""Weight that a reading keeps after each further one: the last ten count most."""
_MOST_RISE, _MOST_FALL = 2.0, 3.0
"""A reading this many times slower than expected counts as that: it was held up. One this many times faster shows that
those before were something else, such as the first pass of a model, and takes their place."""


class ReadingTime:
    """Seconds by the tokens that are read, in proportion."""

    def __init__(self) -> None:
        self._num_tokens = self._seconds = 0.0

    def add(self, num_tokens: float, seconds: float) -> None:
        """Learn of texts of so many tokens, all together."""
        if self._seconds > 0:
            expected = self.at(num_tokens)
            if 0 < _MOST_FALL * seconds < expected:
                self._num_tokens = self._seconds = 0.0
            seconds = min(seconds, _MOST_RISE * expected)
        self._num_tokens = _DECAY * self._num_tokens + num_tokens
        self._seconds = _DECAY * self._seconds + seconds

    def at(self, num_tokens: float) -> float:
        """Return the seconds to expect; 0 until something was read."""
        return self._seconds / self._num_tokens * num_tokens if self._num_tokens else 0.0
