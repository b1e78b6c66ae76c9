"""What a world model predicted beside what came, and what that says of a changed world, as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from forerun.core.control import History
from forerun.core.dependencies import import_optional
from forerun.core.generator import keyed_generator
from forerun.core.protocols import Dynamics
from forerun.data.trajectories import Episode, Trajectories
from forerun.planning.drift import DriftDetector
from forerun.recipes.mpc.act import prediction_error
from forerun.recipes.mpc.figure import most_varying
from forerun.worldmodels.diffusion.bundle import ModelBundle

_SEEN, _PREDICTED, _BASELINE = "#0072b2", "#d55e00", "0.5"


@dataclass(frozen=True, kw_only=True, slots=True)
class Foresight:
    """Predictions of whole horizons, from some steps of an episode on, with the actions that were taken.

    Attributes:
        starts: The steps.
        predicted: States after each action from there on.
        seen: Those that came; beyond the episode's end not a number.
    """

    starts: tuple[int, ...]
    predicted: Float[np.ndarray, "starts horizon state"]
    seen: Float[np.ndarray, "starts horizon state"]

    def errors(self, unit: Float[np.ndarray, " state"]) -> Float[np.ndarray, " horizon"]:
        """Return the root mean square error after each number of steps, in units of each number of the state."""
        return np.sqrt(np.nanmean(((self.predicted - self.seen) / unit) ** 2, axis=(0, 2)))


def foresight(dynamics: Dynamics, episode: Episode, *, horizon: int, every: int, seed: int = 0) -> Foresight:
    """Predict an episode piece by piece.

    Args:
        dynamics: Predicts, from the present alone.
        episode: Recorded.
        horizon: Steps ahead; beyond the episode's end its last action goes on.
        every: Steps from a start to the next.
        seed: Of a dynamics that draws.
    """
    starts = tuple(range(0, episode.num_steps, every))
    ahead = np.array(starts)[:, None] + np.arange(horizon)
    actions = torch.from_numpy(episode.actions[np.minimum(ahead, episode.num_steps - 1)]).float()
    present = torch.from_numpy(episode.states[list(starts)]).float()
    history = History.of_present(present, action_dim=actions.shape[-1])
    with torch.no_grad():
        predicted = dynamics.rollout(history, actions[:, None], generator=keyed_generator(seed, "foresight"))[:, 0]
    seen = episode.states[np.minimum(ahead + 1, episode.num_steps)].astype(np.float64)
    seen[ahead >= episode.num_steps] = np.nan
    return Foresight(starts=starts, predicted=predicted.double().numpy(), seen=seen)


def drift_evidence(
    bundle: ModelBundle, healthy: Trajectories, episode: Episode, *, false_alarm: float = 0.01
) -> Float[np.ndarray, " steps"]:
    """Return the logarithm of what bets against "nothing has changed" have won, step by step.

    Args:
        bundle: The models.
        healthy: Recording that the bets are calibrated on.
        episode: Watched.
        false_alarm: Chance of an alarm in vain; the alarm is at minus its logarithm.
    """
    error = prediction_error(bundle)
    detector = DriftDetector([error.of_episode(one).numpy() for one in healthy.episodes], false_alarm=false_alarm)
    evidence = []
    for value in error.of_episode(episode).tolist():
        detector.update(value)
        evidence.append(detector.log_evidence)
    return np.array(evidence)


def draw_predictions(
    bundle: ModelBundle, episodes: Trajectories, path: Path, *, healthy: Trajectories | None = None
) -> None:
    """Draw predicted against real states of the first episode, errors by steps ahead, and the evidence of drift.

    Args:
        bundle: The models.
        episodes: Recorded.
        path: File to write, ``.png``.
        healthy: Recording of the healthy world; ``None``: instead of evidence, the error of each step is drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figures = import_optional("matplotlib.figure", extra="plot", purpose="a figure")
    episode, horizon = episodes.episodes[0], bundle.config.horizon
    drawn = most_varying(episode.states)
    figure = figures.Figure(figsize=(10, 1.5 * len(drawn) + 3.0), layout="constrained")
    grid = figure.add_gridspec(len(drawn) + 1, 2, height_ratios=[1.0] * len(drawn) + [1.8])
    pieces = foresight(bundle.dynamics, episode, horizon=horizon, every=horizon)
    for row, index in enumerate(drawn):
        axes = figure.add_subplot(grid[row, :])
        _draw_pieces(axes, episode, pieces, index)
        axes.set(ylabel=episodes.state_names[index], xlim=(0, episode.num_steps))
    figure.suptitle("seen (blue); from each dot, what was predicted of the actions that followed (orange)", fontsize=10)
    _draw_errors(figure.add_subplot(grid[-1, 0]), bundle, episodes.episodes)
    _draw_drift(figure.add_subplot(grid[-1, 1]), bundle, episodes.episodes, healthy)
    figure.savefig(path, dpi=110)


def _draw_pieces(axes: Any, episode: Episode, pieces: Foresight, index: int) -> None:
    axes.plot(episode.states[:, index], color=_SEEN, linewidth=1)
    for start, predicted in zip(pieces.starts, pieces.predicted[:, :, index], strict=True):
        count = min(len(predicted), episode.num_steps - start)
        curve = np.concatenate([episode.states[start : start + 1, index], predicted[:count]])
        axes.plot(start + np.arange(count + 1), curve, color=_PREDICTED, linewidth=1, marker="o", markevery=[0],
                  markersize=3)  # fmt: skip
    axes.grid(alpha=0.3)


def _draw_errors(axes: Any, bundle: ModelBundle, episodes: Sequence[Episode]) -> None:
    """Draw errors of both dynamics by steps ahead, in units of the spread of the states that the models were shown."""
    horizon, unit = bundle.config.horizon, bundle.dynamics.frame.states.scale.double().numpy()
    for name, dynamics, colour in (
        ("all steps at once", bundle.dynamics, _PREDICTED),
        ("step by step", bundle.one_step, _BASELINE),
    ):
        found = [foresight(dynamics, one, horizon=horizon, every=max(1, horizon // 2)) for one in episodes]
        whole = Foresight(
            starts=tuple(start for one in found for start in one.starts),
            predicted=np.concatenate([one.predicted for one in found]),
            seen=np.concatenate([one.seen for one in found]),
        )
        axes.plot(np.arange(1, horizon + 1), whole.errors(unit), color=colour, label=name)
    axes.set(xlabel="steps ahead", ylabel="error / spread of the data", ylim=(0, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _draw_drift(axes: Any, bundle: ModelBundle, episodes: Sequence[Episode], healthy: Trajectories | None) -> None:
    if healthy is None:
        error = prediction_error(bundle)
        for one in episodes:
            axes.plot(error.of_episode(one).numpy(), color=_PREDICTED, alpha=0.4, linewidth=0.8)
        axes.set(xlabel="step", ylabel="error of the next state / typical change", yscale="log")
    else:
        for one in episodes:
            axes.plot(drift_evidence(bundle, healthy, one), color=_PREDICTED, alpha=0.6, linewidth=1)
        axes.axhline(-np.log(0.01), color=_BASELINE, linestyle="--", label="alarm: once in a hundred in vain")
        axes.set(xlabel="step", ylabel="evidence of a changed world (log)")
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
