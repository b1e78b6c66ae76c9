"""Tuning one size: learning rate, weight decay and epochs until no neighbour is better; the winner with new seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from forerun.core.errors import ConfigError
from forerun.pretraining.batches import steps_per_epoch
from forerun.pretraining.config import WEIGHT_DECAY, PretrainConfig, Recipe
from forerun.pretraining.executor import Executor
from forerun.pretraining.jobs import Job, Report, tune_loss_of
from forerun.pretraining.ladder import Certificate, Settings, descend
from forerun.pretraining.manifest import read_manifest

LEARNING_RATES: Final = (7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
WEIGHT_DECAYS: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
EPOCHS: Final = (1, 2, 4, 8, 16, 32, 64)
TIMESCALES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Epochs in which weights forget: 1 / (learning rate x decay x steps of an epoch)."""

Search = Literal["decay", "tau"]
"""What is searched beside learning rate and epochs: the weight decay, or its timescale in epochs."""

_TIMESCALE: Final = "decay_timescale_epochs"

Standing = Literal["certified", "certified within noise", "open at the end of a ladder"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """What to tune.

    Attributes:
        recipe: ``standard`` keeps the weight decay at 0.1; ``regularised`` tunes it too.
        base: Everything that is not tuned, and where the search starts: its rates, decay and epochs.
        learning_rates: Rungs.
        weight_decays: Rungs of the regularised recipe, where the decay is searched.
        timescales: Rungs in epochs, where the timescale is searched: a step in the learning rate then changes the
            decay too, so that the timescale stays.
        epochs: Rungs.
        num_seeds: Seeds of the winner, its first included; their spread is the noise that a margin is held against.
        search: Which of both.

    Reference:
        Wang and Aitchison 2024 (arXiv 2405.13698): the best timescale in epochs carries over better than the decay.
    """

    recipe: Recipe = "regularised"
    base: PretrainConfig = field(default_factory=PretrainConfig)
    learning_rates: tuple[float, ...] = LEARNING_RATES
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    timescales: tuple[float, ...] = TIMESCALES
    epochs: tuple[int, ...] = EPOCHS
    num_seeds: int = 3
    search: Search = "decay"

    def __post_init__(self) -> None:
        if self.search not in get_args(Search):
            raise ConfigError(f"search={self.search!r}: must be one of {', '.join(get_args(Search))}")
        if self.search == "tau" and self.recipe == "standard":
            raise ConfigError("search='tau': the standard recipe keeps its weight decay; take the regularised one")
        if self.search == "tau" and self.base.weight_decay == 0:
            raise ConfigError("search='tau': weight_decay=0 has no timescale to begin with; give another")
        if self.num_seeds < 1:
            raise ConfigError(f"num_seeds={self.num_seeds}: must be at least 1; 3 shows the noise between seeds")

    def ladders(self) -> dict[str, tuple[float, ...]]:
        """Return the rungs by the name of the setting."""
        if self.search == "tau":
            return {"learning_rate": self.learning_rates, _TIMESCALE: self.timescales, "num_epochs": self.epochs}
        decays = (WEIGHT_DECAY["standard"],) if self.recipe == "standard" else self.weight_decays
        return {"learning_rate": self.learning_rates, "weight_decay": decays, "num_epochs": self.epochs}


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneResult:
    """What tuning found.

    Attributes:
        certificate: The best settings and their neighbours.
        best: The config of the winner, with its first seed.
        folders: Runs of the winner, one a seed.
        seed_losses: Their tune losses.
        search: What was searched beside learning rate and epochs.
        standing: ``certified`` if every ladder goes on past the winner and every neighbour is worse by more than
            twice the noise of a difference; ``within noise`` if not by that much.
    """

    certificate: Certificate
    best: PretrainConfig
    folders: tuple[Path, ...]
    seed_losses: tuple[float, ...]
    search: Search
    standing: Standing

    @property
    def seed_deviation_nats(self) -> float | None:
        """Standard deviation between seeds; ``None`` of one."""
        return statistics.stdev(self.seed_losses) if len(self.seed_losses) > 1 else None


def tune(
    data: Path,
    store: Path,
    config: TuneConfig,
    executor: Executor,
    *,
    report: Report = lambda done, total, detail: None,
) -> TuneResult:
    """Search for the best settings of one size on the tune split.

    Every point is a run in the store: the same call after an interruption finds the finished ones there.

    Args:
        data: Folder of the prepared corpus.
        store: Folder of all runs.
        config: What to tune.
        executor: Makes the runs.
        report: Progress of the runs under way.

    Raises:
        ConfigError: A ladder is empty or does not rise, or the corpus is too small.
        TrainingError: A run failed, or no settings train.
    """
    num_steps = _steps_per_epoch(data, config.base)

    def config_at(settings: Settings, seed: int) -> PretrainConfig:
        return with_settings(config.base, settings, num_steps=num_steps, seed=seed)

    def losses(configs: Sequence[PretrainConfig]) -> list[tuple[float, Path | None]]:
        runs = executor.make([Job(data=data, store=store, config=item) for item in configs], report=report)
        return [(math.inf, None) if run is None else (tune_loss_of(run), run.folder) for run in runs]

    certificate = descend(
        config.ladders(),
        settings_of(config.base, search=config.search, num_steps=num_steps),
        lambda points: [loss for loss, _ in losses([config_at(point, config.base.seed) for point in points])],
    )
    best = config_at(certificate.best, config.base.seed)
    seeded = losses([replace(best, seed=config.base.seed + number) for number in range(config.num_seeds)])
    kept = [(loss, folder) for loss, folder in seeded if folder is not None]
    return TuneResult(
        certificate=certificate,
        best=best,
        folders=tuple(folder for _, folder in kept),
        seed_losses=tuple(loss for loss, _ in kept),
        search=config.search,
        standing=standing(certificate, [loss for loss, _ in kept]),
    )


def tune_json(result: TuneResult) -> dict[str, Any]:
    """Return a result as JSON types; an infinite loss is ``None``."""
    certificate = result.certificate
    return {
        "best": asdict(result.best),
        "search": result.search,
        "best_settings": certificate.best,
        "tune_loss_nats": certificate.loss_nats,
        "neighbours": [
            {
                "settings": neighbour.settings,
                "tune_loss_nats": neighbour.loss_nats if math.isfinite(neighbour.loss_nats) else None,
            }
            for neighbour in certificate.neighbours
        ],
        "open_ends": list(certificate.open_ends),
        "num_evaluated": certificate.num_evaluated,
        "standing": result.standing,
        "runs": [str(folder) for folder in result.folders],
        "seed_losses_nats": list(result.seed_losses),
        "seed_deviation_nats": result.seed_deviation_nats,
    }


def settings_of(config: PretrainConfig, *, search: Search, num_steps: int) -> Settings:
    """Return the settings that are tuned.

    Args:
        config: A run.
        search: Whether its decay is one of them, or the timescale of the decay.
        num_steps: Steps of an epoch.
    """
    if search == "tau":
        decay = {_TIMESCALE: 1 / (config.learning_rate * config.weight_decay * num_steps)}
    else:
        decay = {"weight_decay": config.weight_decay}
    return {"learning_rate": config.learning_rate, **decay, "num_epochs": config.num_epochs}


def with_settings(base: PretrainConfig, settings: Settings, *, num_steps: int, seed: int) -> PretrainConfig:
    """Return a config with other settings and another seed.

    Args:
        base: Everything that is not tuned.
        settings: As :func:`settings_of` gives them.
        num_steps: Steps of an epoch.
        seed: Of the run.

    Raises:
        ConfigError: The timescale is no longer than a step.
    """
    if _TIMESCALE in settings:
        decay = 1 / (settings["learning_rate"] * settings[_TIMESCALE] * num_steps)
        decay = float(f"{decay:.6g}")  # a run's name is made of it
    else:
        decay = settings["weight_decay"]
    return replace(
        base,
        learning_rate=settings["learning_rate"],
        weight_decay=decay,
        num_epochs=int(settings["num_epochs"]),
        seed=seed,
    )


def _steps_per_epoch(data: Path, config: PretrainConfig) -> int:
    num_tokens = config.unique_tokens or read_manifest(data).splits["train"].tokens.num_tokens
    return steps_per_epoch(num_tokens, sequence_tokens=config.sequence_tokens, batch_sequences=config.batch_sequences)


def standing(certificate: Certificate, seed_losses: Sequence[float]) -> Standing:
    """Return how far a certificate goes, given the winner's losses with several seeds."""
    if certificate.open_ends:
        return "open at the end of a ladder"
    noise = statistics.stdev(seed_losses) * math.sqrt(2) if len(seed_losses) > 1 else math.inf
    return "certified" if certificate.margin_nats > 2 * noise else "certified within noise"
