"""Watches a running controller for a changed world: a drift detector on each environment's prediction errors."""

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import History
from forerun.core.generator import keyed_generator
from forerun.core.protocols import Dynamics
from forerun.data.trajectories import Episode, Trajectories
from forerun.planning.drift import DriftDetector


class PredictionError:
    """How wrong a dynamics is about the next state: root mean square over its numbers.

    Args:
        dynamics: Predicts.
        unit: Typical change of each number of a state in one step.
        seed: Of a dynamics that draws.
    """

    def __init__(self, dynamics: Dynamics, *, unit: Float[Tensor, " state"], seed: int = 0) -> None:
        self._dynamics, self._unit, self._seed = dynamics, unit, seed

    def predicted(
        self, states: Float[Tensor, "rows state"], actions: Float[Tensor, "rows action"], *, key: int
    ) -> Float[Tensor, "rows state"]:
        """Return the next states, as they are expected.

        Args:
            states: The present.
            actions: What is done in it.
            key: Of the draw.
        """
        history = History.of_present(states, action_dim=actions.shape[-1])
        generator = keyed_generator(self._seed, "prediction error", key)
        return self._dynamics.rollout(history, actions[:, None, None], generator=generator)[:, 0, 0]

    def errors(
        self, predicted: Float[Tensor, "rows state"], seen: Float[Tensor, "rows state"]
    ) -> Float[Tensor, " rows"]:
        """Return the error of each prediction, in units of a typical change."""
        return ((predicted - seen) / self._unit).square().mean(dim=-1).sqrt()

    def of_episode(self, episode: Episode) -> Float[Tensor, " steps"]:
        """Return the error at every step of a recorded episode."""
        states = torch.from_numpy(episode.states).float()
        predicted = self.predicted(states[:-1], torch.from_numpy(episode.actions).float(), key=0)
        return self.errors(predicted, states[1:])


class DriftWatch:
    """A detector for each environment, calibrated on a recording of the healthy world.

    The recording should be of the same controller: what it meets is what errors are compared with.

    Args:
        error: Of predictions.
        healthy: The recording.
        num_envs: Environments watched.
        false_alarm: Chance of an alarm, ever, in each of them where nothing changed.

    Raises:
        ConfigError: The recording is too short.
    """

    def __init__(
        self, error: PredictionError, healthy: Trajectories, *, num_envs: int, false_alarm: float = 0.01
    ) -> None:
        calibration = [error.of_episode(episode).numpy() for episode in healthy.episodes]
        self._error = error
        self._detectors = [DriftDetector(calibration, false_alarm=false_alarm) for _ in range(num_envs)]
        self._expected: Float[Tensor, "envs state"] | None = None
        self._num_steps = 0

    def expect(self, states: Float[Tensor, "envs state"], actions: Float[Tensor, "envs action"]) -> None:
        """Predict what these actions lead to."""
        self._expected = self._error.predicted(states, actions, key=self._num_steps)
        self._num_steps += 1

    def observe(self, states: Float[Tensor, "envs state"]) -> None:
        """Compare what was seen with what was expected; nothing is compared at the first step."""
        if self._expected is None:
            return
        errors = self._error.errors(self._expected, states).tolist()
        for detector, error in zip(self._detectors, errors, strict=True):
            detector.update(error)

    @property
    def alarms(self) -> list[int | None]:
        """For each environment the step of its alarm; ``None``: there was none."""
        return [detector.num_steps if detector.has_drifted else None for detector in self._detectors]


def first_alarm(
    error: PredictionError, healthy: Trajectories, changed: Trajectories, *, false_alarm: float = 0.01
) -> int | None:
    """Return after how many steps of a recording the alarm is raised.

    Args:
        error: Of predictions.
        healthy: To calibrate on.
        changed: Watched, its episodes one after the other.
        false_alarm: See :class:`DriftWatch`.

    Returns:
        Steps; ``None``: no alarm.
    """
    detector = DriftDetector(
        [error.of_episode(episode).numpy() for episode in healthy.episodes], false_alarm=false_alarm
    )
    for episode in changed.episodes:
        for value in error.of_episode(episode).tolist():
            if detector.update(value):
                return detector.num_steps
    return None
