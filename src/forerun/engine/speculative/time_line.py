"""Times that grow with a number of tokens, as measured of late."""

_DECAY = 0.98
"""Weight that a point keeps after each further one: the last 50 count most."""
_MOST_RISE, _MOST_FALL = 2.0, 3.0
"""A point this many times above the line counts as that; one this many times below it begins the line anew."""


class TimeLine:
    """A weighted least-squares line y = a + b x with b >= 0, old points fading.

    A hiccup of the machine moves it little. What is far quicker than the line shows that the line was measured while
    something else went on, such as the compilation of a kernel, and takes its place.
    """

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def has_points(self) -> bool:
        """Whether anything was measured."""
        return self._weight > 0

    @property
    def is_confirmed(self) -> bool:
        """Whether more than one point is in it: a single one may have been a hiccup."""
        return self._weight > 1

    def add(self, x: float, y: float) -> None:
        """Learn that x tokens took y seconds."""
        if self._weight > 0:
            expected = self.at(x)
            if _MOST_FALL * y < expected:
                self._weight = self._x = self._y = self._xx = self._xy = 0.0
            y = min(y, _MOST_RISE * expected)
        self._weight, self._x, self._y = _DECAY * self._weight + 1, _DECAY * self._x + x, _DECAY * self._y + y
        self._xx, self._xy = _DECAY * self._xx + x * x, _DECAY * self._xy + x * y

    def fade(self) -> None:
        """Scale the points so that they weigh one together."""
        scale = 1 / max(1.0, self._weight)
        self._weight, self._x, self._y = scale * self._weight, scale * self._x, scale * self._y
        self._xx, self._xy = scale * self._xx, scale * self._xy

    def at(self, x: float) -> float:
        """Return the line at x; with points at one x only, a slope of a twentieth of the level is assumed."""
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - mean_x * mean_x
        assumed = 0.05 * mean_y
        slope = assumed
        if spread > 1e-9:
            measured = (self._xy / self._weight - mean_x * mean_y) / spread
            trust = min(1.0, spread)
            slope = max(0.0, trust * measured + (1 - trust) * assumed)
        return max(mean_y + slope * (x - mean_x), 0.2 * mean_y)
