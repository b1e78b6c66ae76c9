"""Coordinate descent on ladders of settings, until no neighbour of the best is better: that is its certificate."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from forerun.core.errors import ConfigError, TrainingError

Settings = dict[str, float]
"""A value for each ladder."""

Evaluate = Callable[[Sequence[Settings]], Sequence[float]]
"""Losses of some settings; infinite for settings that do not train."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """A point one rung away from the best.

    Attributes:
        settings: Where it is.
        loss_nats: Its loss.
    """

    settings: Settings
    loss_nats: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """The best settings of some ladders, and what shows that they are.

    Attributes:
        best: The settings; no neighbour has a lower loss.
        loss_nats: Their loss.
        neighbours: Every point that is one rung away on one ladder.
        open_ends: Ladders of two or more rungs on whose first or last rung the best lies, as ``name low`` or
            ``name high``: what lies beyond was not tried.
        num_evaluated: Settings tried.
    """

    best: Settings
    loss_nats: float
    neighbours: tuple[Neighbour, ...]
    open_ends: tuple[str, ...]
    num_evaluated: int

    @property
    def margin_nats(self) -> float:
        """Loss of the best neighbour above the best; infinite without neighbours."""
        return min((neighbour.loss_nats for neighbour in self.neighbours), default=math.inf) - self.loss_nats


def descend(ladders: Mapping[str, Sequence[float]], start: Settings, evaluate: Evaluate) -> Certificate:
    """Search from ``start``, one ladder at a time, both neighbours at once.

    Args:
        ladders: Rungs of each setting, rising. One of a single rung stays where it is.
        start: Where to begin; a value between rungs is moved to the nearest.
        evaluate: Gives losses; called with at most two settings that were not tried before.

    Returns:
        The certificate: a minimum along every ladder, which need not be that of the whole grid.

    Raises:
        ConfigError: A ladder is empty or does not rise, or ``start`` has other names.
        TrainingError: No settings tried have a finite loss.

    Reference:
        Kim et al. 2025 (arXiv 2509.14786), whose certificate asks the same of learning rate, decay and epochs.
    """
    _check(ladders, start)
    names = tuple(ladders)
    losses: dict[tuple[int, ...], float] = {}

    def settings_at(point: tuple[int, ...]) -> Settings:
        return {name: ladders[name][rung] for name, rung in zip(names, point, strict=True)}

    def neighbours(point: tuple[int, ...], axis: int) -> list[tuple[int, ...]]:
        rungs = [rung for rung in (point[axis] - 1, point[axis] + 1) if 0 <= rung < len(ladders[names[axis]])]
        return [(*point[:axis], rung, *point[axis + 1 :]) for rung in rungs]

    def measure(points: Sequence[tuple[int, ...]]) -> None:
        new = [point for point in points if point not in losses]
        if new:
            losses.update(zip(new, evaluate([settings_at(point) for point in new]), strict=True))

    here = tuple(
        min(range(len(rungs)), key=lambda rung: abs(rungs[rung] - start[name])) for name, rungs in ladders.items()
    )
    measure([here])
    num_still = 0  # ladders in a row that had nothing better
    axis = 0
    while num_still < len(names):
        around = neighbours(here, axis)
        measure(around)
        best = min([here, *around], key=lambda point: losses[point])
        num_still = num_still + 1 if best == here else 0
        if best == here:
            axis = (axis + 1) % len(names)
        here = best
    if not math.isfinite(losses[here]):
        raise TrainingError(
            f"none of {len(losses)} settings around {settings_at(here)} trains: every loss is infinite or not a "
            "number; put lower learning rates on the ladder"
        )
    return Certificate(
        best=settings_at(here),
        loss_nats=losses[here],
        neighbours=tuple(
            Neighbour(settings=settings_at(point), loss_nats=losses[point])
            for axis in range(len(names))
            for point in neighbours(here, axis)
        ),
        open_ends=tuple(_open_ends(ladders, dict(zip(names, here, strict=True)))),
        num_evaluated=len(losses),
    )


def _open_ends(ladders: Mapping[str, Sequence[float]], rungs: Mapping[str, int]) -> list[str]:
    ends: list[str] = []
    for name, rung in rungs.items():
        if len(ladders[name]) > 1 and rung == 0 and ladders[name][0] > 0:
            ends.append(f"{name} low")
        if len(ladders[name]) > 1 and rung == len(ladders[name]) - 1:
            ends.append(f"{name} high")
    return ends


def _check(ladders: Mapping[str, Sequence[float]], start: Settings) -> None:
    for name, rungs in ladders.items():
        if not rungs or list(rungs) != sorted(set(rungs)):
            raise ConfigError(f"{name}={list(rungs)}: a ladder must have at least one rung, each above the one before")
    if start.keys() != ladders.keys():
        raise ConfigError(f"start={sorted(start)}: must name the ladders {sorted(ladders)}")
