"""Has the world changed? A sequential test on prediction errors, with a stated chance of a false alarm."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from forerun.core.errors import ConfigError

_POWERS: Final = np.array([0.05, 0.1, 0.2, 0.4])
"""Bets on how much the errors have grown: low ones win fast when all are larger than any seen before."""


class DriftDetector:
    """Bets against "errors are as they were" and raises the alarm when it has won 1 / false_alarm times its stake.

    Errors are averaged over blocks of steps, whose neighbours depend on each other little; a block's rank among the
    calibration blocks is a p-value, and a mixture of power bets on it is a martingale while nothing has changed. The
    chance that it *ever* reaches 1 / false_alarm is then at most ``false_alarm``, as far as blocks are exchangeable
    with those of calibration.

    Args:
        calibration: Errors of healthy episodes, one array for each.
        block: Steps of a block.
        false_alarm: Chance of an alarm, ever, where nothing changed, in (0, 1).

    Raises:
        ConfigError: There are too few blocks, or an option is out of range.

    Reference:
        Vovk, Nouretdinov, Gammerman 2003, "Testing exchangeability on-line".
    """

    def __init__(
        self, calibration: Sequence[Float[np.ndarray, " steps"]], *, block: int = 5, false_alarm: float = 0.01
    ) -> None:
        if block < 1 or not 0 < false_alarm < 1:
            raise ConfigError(f"block={block}, false_alarm={false_alarm}: must be at least 1, and in (0, 1)")
        self._block, self._limit = block, -math.log(false_alarm)
        blocks = [mean for errors in calibration for mean in _block_means(errors, block)]
        if len(blocks) < 20:
            raise ConfigError(
                f"{len(blocks)} blocks of {block} steps to calibrate on: must be at least 20; add episodes"
            )
        self._calibration = np.sort(np.array(blocks))
        self._source = np.random.default_rng(0)
        self.reset()

    def reset(self) -> None:
        """Begin the test anew."""
        self._pending: list[float] = []
        self._log_stakes = np.zeros(len(_POWERS))
        self.num_steps = 0
        """Errors seen."""

    @property
    def log_evidence(self) -> float:
        """The logarithm of what the bets have won; the alarm is at -log(false_alarm)."""
        return float(np.logaddexp.reduce(self._log_stakes) - math.log(len(_POWERS)))

    @property
    def has_drifted(self) -> bool:
        """Whether the alarm is raised."""
        return self.log_evidence >= self._limit

    def update(self, error: float) -> bool:
        """Take the error of a step.

        Args:
            error: As in calibration; larger is worse.

        Returns:
            Whether the alarm is raised now.
        """
        if not self.has_drifted:
            self.num_steps += 1
            self._pending.append(error)
            if len(self._pending) == self._block:
                self._bet(float(np.mean(self._pending)))
                self._pending.clear()
        return self.has_drifted

    def _bet(self, value: float) -> None:
        count = len(self._calibration)
        num_larger = count - int(np.searchsorted(self._calibration, value, side="right"))
        num_equal = count - num_larger - int(np.searchsorted(self._calibration, value, side="left"))
        # A rank among ties is drawn, so that p is uniform exactly.
        p_value = (num_larger + self._source.random() * (num_equal + 1)) / (count + 1)
        self._log_stakes += np.log(_POWERS) + (_POWERS - 1) * math.log(max(p_value, 1e-12))


def _block_means(errors: Float[np.ndarray, " steps"], block: int) -> list[float]:
    whole = len(errors) // block * block
    return np.asarray(errors)[:whole].reshape(-1, block).mean(axis=1).tolist()
