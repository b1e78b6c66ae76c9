"""The search for lambda: the least pressure against collapse that keeps the embeddings in use, by bisection.

With too little pressure embeddings collapse, with more than needed the prediction loss counts for less. Short runs
at geometric means of an interval halve it on a logarithmic scale; the health monitor says on which side a run is. No
label, reward or success is looked at.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import CollapseError, ConfigError
from forerun.data.pixel_shards import PixelDataset
from forerun.worldmodels.jepa.config import JepaTrainConfig
from forerun.worldmodels.jepa.health import Health
from forerun.worldmodels.jepa.train import train_world

_TRIALS_FILE: Final = "tune.json"

Report = Callable[[int, int, str], None]
"""Told (steps done, steps of the trial, detail)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """How to search.

    Attributes:
        low: Least lambda.
        high: Greatest one.
        num_trials: Runs, at most; the first two are at ``high`` and ``low``, each further one halves the interval.
        num_steps: Optimiser steps of a run.
        least_std: Spread below which embeddings count as collapsing.
        least_rank: Effective rank below which they do.
        most_error: Prediction error over that of copying above which a model counts as having learned nothing.
    """

    low: float = 1e-3
    high: float = 1.0
    num_trials: int = 8
    num_steps: int = 400
    least_std: float = 0.8
    least_rank: float = 4.0
    most_error: float = 0.8

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range.
        """
        if not 0 < self.low < self.high < math.inf:
            raise ConfigError(f"lambda from {self.low} to {self.high}: must be two finite numbers, 0 < low < high")
        if self.num_trials < 3:
            raise ConfigError(f"num_trials={self.num_trials}: must be >= 3; the first two are the ends of the interval")
        if self.num_steps < 1:
            raise ConfigError(f"num_steps={self.num_steps}: must be >= 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One short run.

    Attributes:
        weight: Its lambda.
        is_healthy: Whether its embeddings are in use and predict.
        why: What was found, in words.
    """

    weight: float
    is_healthy: bool
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """What a search found.

    Attributes:
        weight: The least lambda that was healthy.
        unhealthy_weight: The greatest one below that was not; ``None`` if the least one tried is healthy.
        trials: All runs, in order.
    """

    weight: float
    unhealthy_weight: float | None
    trials: tuple[Trial, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def tune_lambda(
    dataset: PixelDataset,
    folder: Path,
    train: JepaTrainConfig,
    config: TuneConfig,
    *,
    report: Report = lambda done, total, detail: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Tuned:
    """Search lambda.

    Args:
        dataset: To learn from.
        folder: Gets a folder for each run, and ``tune.json``. Runs that are there are not made again.
        train: How to train; lambda and the number of steps are replaced.
        config: How to search.
        report: Progress.
        on_trial: Told of each run.

    Raises:
        CollapseError: Not even the greatest lambda is healthy.
        TrajectoryError: As :func:`forerun.worldmodels.jepa.train.train_world`.
    """

    def try_weight(weight: float) -> bool:
        trial = _tried(dataset, folder / f"lambda-{weight:.4g}", _short(train, config, weight), config, report)
        trials.append(trial)
        on_trial(trial)
        return trial.is_healthy

    trials: list[Trial] = []
    if not try_weight(config.high):
        raise CollapseError(
            f"lambda = {config.high:g}: {trials[0].why}; give --high above it, more --steps, or a lower --least-rank"
        )
    if try_weight(config.low):
        found = Tuned(weight=config.low, unhealthy_weight=None, trials=tuple(trials))
    else:
        low, high = config.low, config.high
        while len(trials) < config.num_trials:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if try_weight(middle) else (middle, high)
        found = Tuned(weight=high, unhealthy_weight=low, trials=tuple(trials))
    write_json_file(folder / _TRIALS_FILE, found.to_json())
    return found


def verdict(health: Health, config: TuneConfig) -> tuple[bool, str]:
    """Return whether a run is healthy, and what was found, in words."""
    is_healthy = (
        health.embedding_std >= config.least_std
        and health.effective_rank >= config.least_rank
        and health.prediction_over_copying <= config.most_error
    )
    return is_healthy, health.line()


def _short(train: JepaTrainConfig, config: TuneConfig, weight: float) -> JepaTrainConfig:
    every = max(1, min(train.monitor_every, config.num_steps // 4))
    objective = replace(train.objective, weight=weight)
    return replace(train, objective=objective, num_steps=config.num_steps, monitor_every=every)


def _tried(dataset: PixelDataset, folder: Path, train: JepaTrainConfig, config: TuneConfig, report: Report) -> Trial:
    weight = train.objective.weight
    try:
        result = train_world(
            dataset,
            folder,
            train,
            report=lambda done, total, detail: report(done, total, f"lambda {weight:.4g}: {detail}"),
        )
    except CollapseError as error:
        return Trial(weight=weight, is_healthy=False, why=str(error).split(";")[0])
    is_healthy, why = verdict(Health.from_json(result["health"]), config)
    return Trial(weight=weight, is_healthy=is_healthy, why=why)
