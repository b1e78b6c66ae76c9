"""Which way each request of a server decodes: its own, or the one that is fastest at this load."""

from collections.abc import Callable, Sequence

from forerun.core.errors import RequestError
from forerun.engine.config import Method
from forerun.engine.core import EngineCore
from forerun.engine.request import Request
from forerun.engine.speculative.load import Load
from forerun.engine.speculative.ways import Way

_ROUNDS_PER_CHOICE = 64
"""Rounds after which a server that is never idle asks again which way is best: a choice is worth seconds of work."""
_ROUNDS_PER_LOAD = 4
"""Rounds for which several requests must have run, or one only, before it asks because of that."""


class WaySwitch:
    """Gives every request a way, and moves those that leave it open together from one to the next.

    A choice is due when work begins and nothing ran, soon after one request has become several or several one, and
    after a number of rounds in which every request left it open: only such rounds say what a way is worth. Threads and
    cores follow the way that needs them: SSD's, while any request is on it.

    Args:
        ways: One for each method.
        default: Method of requests that name none; ``auto`` leaves it open.
        choose: Returns the best way for a load, with the process's threads and cores set for it.
    """

    def __init__(self, ways: Sequence[Way], *, default: Method, choose: Callable[[Load], Way]) -> None:
        self._ways = {way.method: way for way in ways}
        self._default, self._choose = default, choose
        self._open: dict[int, Request] = {}
        self._fixed: dict[int, Way] = {}
        self._current: Way | None = None
        self._entered: Way | None = None
        self._num_rounds = 0
        self._num_rounds_otherwise = 0
        self._is_many = False

    @property
    def methods(self) -> tuple[str, ...]:
        """What a request may name."""
        return (*sorted(self._ways), "auto")

    def check(self, method: Method | None) -> None:
        """Refuse a method that this engine has not ready.

        Raises:
            RequestError: It has not.
        """
        if method is not None and method not in self.methods:
            raise RequestError(
                f"method={method!r}: this server has {', '.join(self.methods)} ready; name one of these or leave it out"
            )

    def way_for(self, request: Request, method: Method | None) -> Way:
        """Return the way that a new request begins with."""
        name = method or self._default
        if name in self._ways:
            way = self._ways[name]
            self._fixed[request.index] = way
            return way
        if not self._open:
            self._current, self._num_rounds = self._choose(Load.of([request])), 0
            self._is_many = False
            self._num_rounds_otherwise = 0
            self._entered = self._current
        self._open[request.index] = request
        assert self._current is not None
        return self._current

    def forget(self, request: Request) -> None:
        """Take note that a request has left."""
        self._open.pop(request.index, None)
        self._fixed.pop(request.index, None)

    def before_step(self, core: EngineCore) -> None:
        """Choose anew where that is due, and set threads and cores for the requests there are."""
        if self._open and not self._fixed:
            self._num_rounds += 1
            is_many = len(self._open) > 1
            self._num_rounds_otherwise = self._num_rounds_otherwise + 1 if is_many != self._is_many else 0
            if self._num_rounds > _ROUNDS_PER_CHOICE or self._num_rounds_otherwise > _ROUNDS_PER_LOAD:
                self._num_rounds, self._num_rounds_otherwise = 0, 0
                self._is_many = is_many
                self._current = self._entered = self._choose(Load.of(self._open.values()))
                for request in self._open.values():
                    core.switch(request, self._current)
        wanted = self._needed()
        if wanted is not None and wanted is not self._entered:
            wanted.enter()
            self._entered = wanted

    def num_requests(self) -> dict[str, int]:
        """Return how many requests are on each method now."""
        counts = dict.fromkeys(self._ways, 0)
        for way in self._fixed.values():
            counts[way.method] += 1
        if self._current is not None:
            counts[self._current.method] += len(self._open)
        return counts

    def _needed(self) -> Way | None:
        """Return the way with the fewest threads among those in use: the drafter needs its core to itself."""
        used = [*self._fixed.values(), *([self._current] if self._open and self._current is not None else [])]
        return min(used, key=lambda way: way.num_threads, default=None)
