"""Surprise: how far what was seen is from what was predicted, and an alarm with a false-alarm rate that one sets.

Reference:
    Maes et al. 2026 (arXiv 2603.19312), section 5.2, for the error as surprise; Vovk, Gammerman and Shafer 2005,
    "Algorithmic learning in a random world", for thresholds that hold their rate whatever the law of the errors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.core.protocols import Dynamics
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.latent_model import LatentModel

_Z95: Final = 1.959963984540054


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the detector says of one frame.

    Attributes:
        surprise: Mean squared error of the prediction over the numbers of the embedding; ``None`` for the first frame,
            which nothing predicted.
        p_value: Share of calibration frames (and this one) that were at least as surprising; 1 for the first frame.
        is_alarm: Whether the surprise is above the threshold.
    """

    surprise: float | None
    p_value: float
    is_alarm: bool


class SurpriseDetector:
    """Watches a stream of frames and actions.

    If the stream is exchangeable with the calibration frames, the expected share of alarms is at most the rate asked
    for, and at least that less 1 / (frames + 1). Neighbouring frames are not independent: the share over one short
    episode varies more than independent frames would, and a few episodes calibrate loosely; by how much says
    :func:`calibration_spread`.

    Args:
        model: Predicts.
        calibration: Surprises of undisturbed frames, which neither trained nor chose the model.
        false_alarm_rate: Share of undisturbed frames that may raise an alarm, in (0, 1).

    Raises:
        ConfigError: The rate is out of range, or there are too few frames for one as low.
    """

    def __init__(self, model: Jepa, calibration: Float[Tensor, " frames"], *, false_alarm_rate: float) -> None:
        self._model = model
        self._sorted = calibration.double().sort().values
        self.threshold = conformal_threshold(calibration, false_alarm_rate=false_alarm_rate)
        self.reset()

    def reset(self) -> None:
        """Forget the stream, for one that begins elsewhere."""
        self._latents: list[Tensor] = []
        self._actions: list[Tensor] = []

    def update(
        self, frame: UInt8[Tensor, "height width 3"], actions_before: Float[Tensor, " action"] | None = None
    ) -> Reading:
        """Take the next frame.

        Args:
            frame: What is seen.
            actions_before: The raw block of actions since the frame before; ``None`` for the first frame of a stream.

        Raises:
            ConfigError: Actions are missing or not of the model's size.
        """
        latent = self._model.encode_all(frame[None])
        if not self._latents:
            self._latents = [latent]
            return Reading(surprise=None, p_value=1.0, is_alarm=False)
        if actions_before is None or actions_before.shape != (self._model.action_dim,):
            shape = None if actions_before is None else list(actions_before.shape)
            raise ConfigError(
                f"actions before a frame of shape {shape}: must be [{self._model.action_dim}], the block since the "
                "frame before; call reset() where a new stream begins"
            )
        self._actions.append(self._model.standardised(actions_before)[None])
        history = self._model.predictor.history
        self._latents, self._actions = self._latents[-history:], self._actions[-history:]
        past = self._actions[:-1]
        seen = History(
            states=torch.stack(self._latents, dim=1),
            actions=torch.stack(past, dim=1) if past else latent.new_zeros(1, 0, self._model.action_dim),
        )
        surprise = float(one_step_surprise(self._model, seen, self._actions[-1], latent))
        self._latents.append(latent)
        num_above = len(self._sorted) - int(torch.searchsorted(self._sorted, surprise))
        return Reading(
            surprise=surprise,
            p_value=(1 + num_above) / (1 + len(self._sorted)),
            is_alarm=surprise > self.threshold,
        )


class SurpriseWatch:
    """Watches embeddings in a control loop: an alarm for each stream whose surprise passes a threshold.

    What a :class:`SurpriseDetector` is for one stream of frames, for several streams of embeddings and standardised
    actions, as a controller that plans in latent space has them: a
    :class:`~forerun.planning.adaptation.Watch` that can ask for an adapted planner.

    Args:
        model: Predicts.
        threshold: Above it, a frame is an alarm; see :func:`conformal_threshold`.
        num_envs: Streams.
    """

    def __init__(self, model: LatentModel, *, threshold: float, num_envs: int) -> None:
        self._model, self._threshold = model, threshold
        self._history: History | None = None
        self._actions: Tensor | None = None
        self._num_steps = 0
        self.alarms: list[int | None] = [None] * num_envs
        """For each stream the number of actions before its first alarm; ``None``: there was none."""

    def observe(self, states: Float[Tensor, "envs D"]) -> None:
        """Take the embeddings of what is seen now; nothing is compared at the first step."""
        if self._history is None or self._actions is None:
            self._history = History.of_present(states, action_dim=self._model.action_dim)
            return
        surprises = one_step_surprise(self._model, self._history, self._actions, states)
        self._num_steps += 1
        for place in (surprises > self._threshold).nonzero().squeeze(1).tolist():
            if self.alarms[place] is None:
                self.alarms[place] = self._num_steps
        self._history = self._history.followed_by(self._actions, states, most=self._model.predictor.history)

    def expect(self, states: Float[Tensor, "envs D"], actions: Float[Tensor, "envs A"]) -> None:
        """Keep what is done now, in the model's units; what it leads to is predicted when it is seen."""
        self._actions = actions


@torch.no_grad()
def one_step_surprise(
    model: Dynamics,
    history: History,
    actions: Float[Tensor, "streams A"],
    latents: Float[Tensor, "streams D"],
) -> Float[Tensor, " streams"]:
    """Return how far what is seen now is from what was predicted, for several streams at once.

    Args:
        model: Predicts.
        history: Embeddings before, and the actions between them, in the model's units.
        actions: What was done in the last of them, in the model's units.
        latents: Embeddings of what is seen now.
    """
    predicted = model.rollout(history, actions[:, None, None], generator=torch.Generator())[:, 0, 0]
    return (predicted - latents).square().mean(dim=1)


@torch.no_grad()
def episode_surprises(model: Jepa, episodes: PixelEpisodes) -> list[Float[Tensor, " frames_but_one"]]:
    """Return for each episode the surprise of every frame but its first, all frames of all episodes at once.

    The same numbers as those of a :class:`SurpriseDetector` that sees the episodes one after the other.
    """
    latents = model.encode_all(torch.from_numpy(episodes.pixels))
    actions = model.standardised(torch.from_numpy(episodes.actions).float())
    history = model.predictor.history
    lengths, first_rows = torch.from_numpy(episodes.lengths), torch.from_numpy(episodes.first_rows)
    position = torch.arange(len(latents)) - first_rows.repeat_interleave(lengths)
    surprises = torch.zeros(len(latents))
    for context in range(1, history + 1):
        is_here = position >= history if context == history else position == context
        rows = is_here.nonzero().squeeze(1)
        window = rows[:, None] + torch.arange(-context, 0)
        was_training = model.training
        model.eval()
        predicted = model.predict(latents[window], actions[window])[:, -1]
        model.train(was_training)
        surprises[rows] = (predicted - latents[rows]).square().mean(dim=1)
    return [
        surprises[first + 1 : first + length]
        for first, length in zip(first_rows.tolist(), lengths.tolist(), strict=True)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmRate:
    """A share of frames above a threshold, with an interval that knows that an episode's frames are alike.

    Attributes:
        rate: Share of frames.
        low: End of the 95% interval, at least 0.
        high: Other end, at most 1.
        num_episodes: Behind it.
    """

    rate: float
    low: float
    high: float
    num_episodes: int


def alarm_rate(episodes: Sequence[Float[Tensor, " frames"]], *, threshold: float, spread: float = 0.0) -> AlarmRate:
    """Return the share of frames above a threshold; episodes, not frames, are what is independent.

    Args:
        episodes: Surprises of the frames of two or more episodes.
        threshold: Alarms are above it.
        spread: Standard deviation from elsewhere, such as :func:`calibration_spread`, for the interval to include.
    """
    rate, error = _rate_and_error(episodes, threshold)
    half = _Z95 * math.hypot(error, spread)
    return AlarmRate(rate=rate, low=max(0.0, rate - half), high=min(1.0, rate + half), num_episodes=len(episodes))


def calibration_spread(episodes: Sequence[Float[Tensor, " frames"]], *, threshold: float) -> float:
    """Return by how much (one standard deviation) the true rate of alarms varies with the calibration episodes drawn.

    The threshold is a quantile, and the share of frames above a fixed one varies over draws of so many episodes by what
    is returned here; to first order that is how far the share above the quantile found is from the one asked for.

    Args:
        episodes: Surprises of the calibration episodes, two or more.
        threshold: Found from them.
    """
    return _rate_and_error(episodes, threshold)[1]


def _rate_and_error(episodes: Sequence[Float[Tensor, " frames"]], threshold: float) -> tuple[float, float]:
    """Return a ratio estimate over episodes (clusters) and its standard error."""
    lengths = torch.tensor([len(surprises) for surprises in episodes], dtype=torch.float64)
    alarms = torch.tensor([float((surprises > threshold).sum()) for surprises in episodes], dtype=torch.float64)
    rate = float(alarms.sum() / lengths.sum())
    residuals = (alarms - rate * lengths) / lengths.mean()
    return rate, float(residuals.std()) / math.sqrt(len(episodes))


def conformal_threshold(calibration: Float[Tensor, " frames"], *, false_alarm_rate: float) -> float:
    """Return the surprise that a further undisturbed frame exceeds with at most the given probability.

    Args:
        calibration: Surprises of n undisturbed frames.
        false_alarm_rate: In (0, 1), at least 1 / (n + 1).

    Returns:
        The ceil((n + 1) (1 - rate))-th smallest.

    Raises:
        ConfigError: The rate is out of range, or n is too small for it.
    """
    if not 0 < false_alarm_rate < 1:
        raise ConfigError(f"false_alarm_rate={false_alarm_rate}: must lie in (0, 1)")
    rank = math.ceil((len(calibration) + 1) * (1 - false_alarm_rate) - 1e-9)
    if rank > len(calibration):
        raise ConfigError(
            f"false_alarm_rate={false_alarm_rate}: {len(calibration)} calibration frames allow "
            f"{1 / (len(calibration) + 1):.3g} and above; calibrate on more episodes or accept a higher rate"
        )
    return float(calibration.sort().values[max(rank, 1) - 1])
