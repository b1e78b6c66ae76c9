"""Targets of a state value that puts pieces of different episodes together, for goals that no episode had, too.

A return that an episode had says what followed it, not what could have: where no episode goes all the way, none of its
states learns that the way exists. Here a stretch of recorded steps is worth its rewards and what a slow copy of the
value says of its end, so that values travel from episode to episode; an expectile above a half keeps the better
stretches. In a task with a goal in its state every place that an episode came to serves as a goal of others.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.data.trajectories import Trajectories
from forerun.data.windows import WindowSource
from forerun.envs.control_goals import Arrival
from forerun.worldmodels.diffusion.value import StateValue
from forerun.worldmodels.diffusion.waves import WaveConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StateValueConfig:
    """What the value of a state learns.

    Attributes:
        targets: ``returns``: what the data's episodes returned. ``stitched``: see this module.
        expectile: In (0, 1): 0.5 learns the mean of the targets, more learns what their better part is.
        waves: Numbers of a state that are seen as waves too.
        lookahead: Recorded steps of a stretch.
        num_goals: Goals that every stretch of a batch gets, where there are goals.
        follow_rate: Share by which the slow copy moves towards the value in an optimiser step, in (0, 1].
        future_share: Share of the batch whose goal is where its own episode comes to later.
        elsewhere_share: Share whose goal is where any episode came to; the rest keeps its own.
    """

    targets: Literal["returns", "stitched"] = "returns"
    expectile: float = 0.5
    waves: WaveConfig = field(default_factory=WaveConfig)
    lookahead: int = 8
    num_goals: int = 4
    follow_rate: float = 0.01
    future_share: float = 0.4
    elsewhere_share: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.expectile < 1 or not 0 < self.follow_rate <= 1:
            raise ConfigError(
                f"expectile={self.expectile}, follow_rate={self.follow_rate}: must lie in (0, 1), and in (0, 1]"
            )
        if min(self.lookahead, self.num_goals) < 1:
            raise ConfigError(f"lookahead={self.lookahead}, num_goals={self.num_goals}: must be at least 1")
        if min(self.future_share, self.elsewhere_share) < 0 or self.future_share + self.elsewhere_share > 1:
            raise ConfigError(
                f"future_share={self.future_share}, elsewhere_share={self.elsewhere_share}: must be at least 0, and at "
                "most 1 together"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Some recorded steps of each row of a batch.

    Attributes:
        states: Where they begin.
        paid: Their discounted rewards.
        ends: Where they end.
        end_weights: What a value of the end counts: the discount of all the steps, 0 where the task had ended.
    """

    states: Float[Tensor, "batch state"]
    paid: Float[Tensor, " batch"]
    ends: Float[Tensor, "batch state"]
    end_weights: Float[Tensor, " batch"]


class Stitching:
    """Draws stretches with goals, and says what they are worth.

    Args:
        trajectories: The recording.
        config: Options.
        discount: Factor from a step to the next, in (0, 1).
        arrival: What arrives where, in a task with a goal in its state; ``None``: goals stay what they were.

    Reference:
        Kostrikov et al. 2021 (arXiv 2110.06169): expectiles of bootstrapped targets; here of the value itself, without
        a Q, which in a deterministic world comes to the same. Andrychowicz et al. 2017 (arXiv 1707.01495): goals in
        hindsight.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        config: StateValueConfig,
        *,
        discount: float,
        arrival: Arrival | None = None,
    ) -> None:
        self._config, self._discount, self._arrival = config, discount, arrival
        self._source = WindowSource(trajectories, history=1, horizon=config.lookahead)
        episodes = trajectories.episodes
        lengths = np.array([episode.num_steps for episode in episodes])
        ends = np.cumsum(lengths + 1) - 1
        self._last = torch.from_numpy(np.repeat(ends, lengths))
        self._rewards = torch.from_numpy(
            np.concatenate([np.append(episode.rewards, 0.0) for episode in episodes])
        ).float()
        has_ended = np.zeros(len(self._rewards), dtype=bool)
        has_ended[ends] = [episode.terminated for episode in episodes]
        self._has_ended = torch.from_numpy(has_ended)
        paid = torch.cat([torch.from_numpy(episode.rewards) for episode in episodes]) / (1 - discount)
        self._bounds = (float(paid.min()), float(paid.max()))

    def draw(self, indices: Int64[Tensor, " batch"], generator: torch.Generator) -> Stretch:
        """Return the stretches that begin at some windows of the recording.

        Args:
            indices: Windows, in the order of a :class:`~forerun.data.windows.WindowSource` of the recording.
            generator: Of the goals.
        """
        if self._arrival is not None:
            indices = indices.repeat(self._config.num_goals)
        window = self._source.take(indices)
        states = torch.cat([window.states, window.following], dim=1)
        first, count = self._source.rows[indices], window.is_real.sum(dim=1)
        if self._arrival is None:
            rewards = self._rewards[
                torch.minimum(first[:, None] + torch.arange(states.shape[1] - 1), self._last[indices, None])
            ]
        else:
            goals = self._goals(self._arrival, indices, states, generator)
            states[..., list(self._arrival.goal)] = goals[:, None]
            rewards = self._arrival.reward(states[:, :-1], window.actions, states[:, 1:])
        discounts = self._discount ** torch.arange(rewards.shape[1])
        is_over = self._has_ended[first + count]
        return Stretch(
            states=states[:, 0],
            paid=(discounts * rewards * window.is_real).sum(dim=1),
            ends=states[torch.arange(len(states)), count],
            end_weights=(self._discount**count).masked_fill(is_over, 0.0),
        )

    def worth(self, stretch: Stretch, slow: StateValue) -> Float[Tensor, " batch"]:
        """Return what stretches pay with what comes after them, which is never beyond what the data's rewards allow."""
        return stretch.paid + stretch.end_weights * slow(stretch.ends).clamp(*self._bounds)

    def _goals(
        self, arrival: Arrival, indices: Tensor, states: Float[Tensor, "batch steps state"], generator: torch.Generator
    ) -> Float[Tensor, "batch goal"]:
        """Return a goal for each row: one of its own future, any other, or the one that it had."""
        config, rows, every = self._config, self._source.rows[indices], self._source.all_states
        kinds, places = torch.rand((2, len(indices)), generator=generator)
        later = rows + 1 + (places * (self._last[indices] - rows)).long()
        others = torch.randint(len(every), (len(indices),), generator=generator)
        is_future, is_own = kinds < config.future_share, kinds >= config.future_share + config.elsewhere_share
        reached = every[torch.where(is_future, later.minimum(self._last[indices]), others)][:, list(arrival.moving)]
        return torch.where(is_own[:, None], states[:, 0, list(arrival.goal)], reached)


@torch.no_grad()
def follow(slow: StateValue, value: StateValue, *, rate: float) -> None:
    """Move the weights of a slow copy, in place, by a share of the way towards those of the value."""
    for behind, ahead in zip(slow.parameters(), value.parameters(), strict=True):
        behind.lerp_(ahead, rate)
