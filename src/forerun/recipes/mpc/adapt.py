"""New dynamics: tune the dynamics alone on a little play data, mixed with the old; proposal and values stay."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.data.trajectories import Trajectories
from forerun.data.windows import WindowSource
from forerun.worldmodels.diffusion.bundle import ModelBundle
from forerun.worldmodels.diffusion.dynamics import DiffusionDynamics
from forerun.worldmodels.diffusion.joint import JointDiffusion
from forerun.worldmodels.diffusion.train import DmpcTrainingConfig, ModelTrainer, Report

Tuned = TypeVar("Tuned", DiffusionDynamics, JointDiffusion)

_NUM_MEASURED = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptConfig:
    """Options of :func:`adapt`.

    Attributes:
        num_rounds: Rounds of training; after each the held-out error is measured, and the best round is kept.
        steps_per_round: Optimiser steps of a round.
        batch_size: Windows of a step.
        learning_rate: Peak of every round.
        replay_share: Old episodes for each new one, against forgetting what the play data does not show. Where the old
            world contradicts the new one in the same situations, a model that draws learns to draw from both.
        held_out_share: Share of the play episodes that only measure.
        patience: Rounds without a better error after which it stops.
        seed: Of batches and noise.
    """

    num_rounds: int = 6
    steps_per_round: int = 100
    batch_size: int = 256
    learning_rate: float = 5e-4
    replay_share: float = 0.0
    held_out_share: float = 0.2
    patience: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_rounds < 1 or self.steps_per_round < 1 or not 0 < self.held_out_share < 1 or self.replay_share < 0:
            raise ConfigError(
                f"num_rounds={self.num_rounds}, steps_per_round={self.steps_per_round}, held_out_share="
                f"{self.held_out_share}, replay_share={self.replay_share}: counts must be at least 1, the held-out "
                "share in (0, 1), the replay share at least 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """What tuning gave.

    Attributes:
        bundle: The models, with the tuned dynamics.
        errors: Held-out multi-step error before the first round and after each.
    """

    bundle: ModelBundle
    errors: tuple[float, ...]

    @property
    def best_round(self) -> int:
        """The round whose weights were kept; 0 is the dynamics as it was."""
        return int(np.argmin(self.errors))


def adapt(
    bundle: ModelBundle,
    play: Trajectories,
    *,
    replay: Trajectories | None = None,
    config: AdaptConfig | None = None,
    directory: Path | None = None,
    report: Report = lambda name, done, total, detail: None,
) -> Adaptation:
    """Tune the dynamics on play data; nothing that it is given is changed.

    Args:
        bundle: The models.
        play: Episodes of the changed world, at least two.
        replay: Episodes of the old one; ``None``: none are mixed in.
        config: Options.
        directory: For checkpoints; ``None`` keeps none.
        report: Told of progress.

    Raises:
        TrajectoryError: There are too few episodes, or they are of another task.

    Reference:
        Zhou et al. 2024 (arXiv 2410.05364), section on novel dynamics: only p_d is tuned.
    """
    dynamics, errors = _tuned(
        bundle.dynamics,
        multi_step_error,
        bundle,
        play,
        replay=replay,
        config=config or AdaptConfig(),
        directory=directory,
        report=report,
    )
    return Adaptation(bundle=replace(bundle, dynamics=dynamics), errors=errors)


def adapt_joint(
    joint: JointDiffusion,
    bundle: ModelBundle,
    play: Trajectories,
    *,
    replay: Trajectories | None = None,
    config: AdaptConfig | None = None,
) -> tuple[JointDiffusion, tuple[float, ...]]:
    """Tune the baseline that draws actions and states together, in the same rounds as :func:`adapt` does.

    Args:
        joint: Not changed.
        bundle: Of the same task and data.
        play: As for :func:`adapt`.
        replay: Likewise.
        config: Likewise.

    Returns:
        The tuned model, and its held-out denoising error before the first round and after each.
    """
    return _tuned(joint, _denoising_error, bundle, play, replay=replay, config=config or AdaptConfig())


def _tuned(
    model: Tuned,
    error: Callable[[Tuned, WindowSource, int], float],
    bundle: ModelBundle,
    play: Trajectories,
    *,
    replay: Trajectories | None,
    config: AdaptConfig,
    directory: Path | None = None,
    report: Report = lambda name, done, total, detail: None,
) -> tuple[Tuned, tuple[float, ...]]:
    """Return a tuned copy of a model, with the weights of the round whose held-out error was least."""
    learned, held_out = play.split(max(1, round(config.held_out_share * len(play.episodes))))
    if replay is not None and config.replay_share > 0:
        count = min(len(replay.episodes), max(1, round(config.replay_share * len(learned.episodes))))
        learned = learned.joined(replace(replay, episodes=replay.episodes[:count]))
    measured = WindowSource(held_out, history=bundle.config.history, horizon=bundle.config.horizon)
    tuned = copy.deepcopy(model)
    errors = [error(tuned, measured, config.seed)]
    best = copy.deepcopy(tuned.state_dict())
    for number in range(1, config.num_rounds + 1):
        trainer = ModelTrainer(
            learned,
            bundle.bounds,
            config=bundle.config,
            training=DmpcTrainingConfig(
                num_steps=config.steps_per_round,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                seed=config.seed + number,
            ),
            directory=directory,
            report=report,
        )
        trainer.tune(tuned, name=f"tuned-{number}")
        errors.append(error(tuned, measured, config.seed))
        if errors[-1] <= min(errors):
            best = copy.deepcopy(tuned.state_dict())
        elif len(errors) - 1 - int(np.argmin(errors)) >= config.patience:
            break
    tuned.load_state_dict(best)
    return tuned, tuple(errors)


@torch.no_grad()
def multi_step_error(dynamics: DiffusionDynamics, source: WindowSource, seed: int) -> float:
    """Return the root mean square error of predicted states, in units of the offsets' spread at each step.

    Args:
        dynamics: Predicts.
        source: Recorded windows.
        seed: Of the windows and of the prediction's noise.
    """
    generator = keyed_generator(seed, "multi-step error")
    window = source.draw(_NUM_MEASURED, generator)
    predicted = dynamics.rollout(
        History(states=window.states, actions=window.past_actions), window.actions[:, None], generator=generator
    )[:, 0]
    gaps = ((predicted - window.following) / dynamics.offsets.scale)[window.is_real]
    return float(gaps.square().mean().sqrt())


@torch.no_grad()
def _denoising_error(joint: JointDiffusion, source: WindowSource, seed: int) -> float:
    generator = keyed_generator(seed, "denoising error")
    return float(joint.loss(source.draw(_NUM_MEASURED, generator), generator=generator))
