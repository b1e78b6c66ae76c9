"""Another drafter in the place of one that has ended: a number of tries, with longer and longer pauses between them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from forerun.core.errors import ForerunError
from forerun.engine.speculative.drafter_link import DrafterLink


class StartingDrafter(DrafterLink, Protocol):
    """A drafter that may still be loading."""

    def is_ready(self) -> bool:
        """Return whether it has loaded, without waiting.

        Raises:
            ForerunError: It has ended, or can't load what it should.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartConfig:
    """When a drafter is started again.

    Attributes:
        max_tries: Tries in a row; 0: never.
        first_pause_s: Pause before the first; each further one is twice as long.
        timeout_s: Time to load; a drafter that takes longer is given up.
        healthy_s: A drafter that ran for so long was no failure: the next one's tries count from the first.
    """

    max_tries: int = 5
    first_pause_s: float = 0.25
    timeout_s: float = 120.0
    healthy_s: float = 10.0


class DrafterRestarts:
    """Starts drafters, one at a time, while the target goes on without one.

    Args:
        start: Starts a drafter.
        config: How often and when.
        now: Gives the time in seconds.
    """

    def __init__(
        self,
        start: Callable[[], StartingDrafter],
        config: RestartConfig,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start, self._config, self._now = start, config, now
        self._num_tries = 0
        self._ready_s = now()
        self._due_s: float | None = None
        self._starting: StartingDrafter | None = None
        self._started_s = 0.0

    def lose(self) -> bool:
        """Take note that the drafter has ended; return whether another one will be tried."""
        if self._now() - self._ready_s >= self._config.healthy_s:
            self._num_tries = 0
        return self._plan_try()

    def poll(self) -> DrafterLink | None:
        """Return the new drafter once it is ready, start it when it is due; never waits."""
        if self._due_s is not None and self._now() >= self._due_s:
            self._due_s, self._started_s = None, self._now()
            try:
                self._starting = self._start()
            except OSError:  # no process, no memory: maybe later
                self._plan_try()
        drafter = self._starting
        if drafter is None:
            return None
        try:
            is_ready = drafter.is_ready()
        except ForerunError:
            is_ready = False
            self._give_up(drafter)
        if is_ready:
            self._starting, self._ready_s = None, self._now()
            return drafter
        if self._starting is not None and self._now() - self._started_s > self._config.timeout_s:
            self._give_up(drafter)
        return None

    def close(self) -> None:
        """End what is being started, and start no more."""
        self._due_s = None
        if self._starting is not None:
            self._starting.close()
            self._starting = None

    def _give_up(self, drafter: StartingDrafter) -> None:
        drafter.close()
        self._starting = None
        self._plan_try()

    def _plan_try(self) -> bool:
        if self._num_tries >= self._config.max_tries:
            return False
        self._due_s = self._now() + self._config.first_pause_s * 2**self._num_tries
        self._num_tries += 1
        return True
