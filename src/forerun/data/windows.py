"""Windows of recorded control for training: what was seen, what was done, what followed; never past an end."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from forerun.core.errors import TrajectoryError
from forerun.data.trajectories import Episode, Trajectories


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A batch of windows, each beginning at some step of some episode.

    Attributes:
        states: The H states up to the first step; before an episode's begin its first state is repeated.
        past_actions: The H - 1 actions between them; zero before the begin.
        actions: The F actions from there on; the last one repeated after the end.
        following: The F states after them; the last one repeated after the end.
        is_real: Where an action and its following state were recorded. What is beyond the end must not be learned.
    """

    states: Float[Tensor, "batch history state"]
    past_actions: Float[Tensor, "batch history_less_one action"]
    actions: Float[Tensor, "batch horizon action"]
    following: Float[Tensor, "batch horizon state"]
    is_real: Bool[Tensor, "batch horizon"]

    def whole(self) -> "Window":
        """Return the windows that lie inside their episodes whole; all of them where none does."""
        chosen = self.is_real.all(dim=1)
        chosen = chosen if bool(chosen.any()) else ~chosen
        return Window(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


class WindowSource:
    """All windows of some trajectories.

    Args:
        trajectories: The recording.
        history: H, at least 1.
        horizon: F, at least 1.
        least_real: A window begins only where this many steps of its episode are left.

    Raises:
        TrajectoryError: No episode is long enough.
    """

    def __init__(self, trajectories: Trajectories, *, history: int, horizon: int, least_real: int = 1) -> None:
        self._history, self._horizon = history, horizon
        episodes = trajectories.episodes
        lengths = np.array([episode.num_steps for episode in episodes])
        self._states = torch.from_numpy(np.concatenate([episode.states for episode in episodes]).astype(np.float32))
        self._actions = torch.from_numpy(np.concatenate([_padded_actions(e) for e in episodes]).astype(np.float32))
        is_long = lengths >= least_real
        if not is_long.any():
            raise TrajectoryError(
                f"{trajectories.source}: no episode has {least_real} steps, the longest has {lengths.max()}; record "
                "longer ones, or take a shorter horizon"
            )
        firsts, lengths = (np.cumsum(lengths + 1) - (lengths + 1))[is_long], lengths[is_long]
        counts = lengths - least_real + 1
        starts = [first + np.arange(count) for first, count in zip(firsts, counts, strict=True)]
        self._rows = torch.from_numpy(np.concatenate(starts))
        self._first = torch.from_numpy(np.repeat(firsts, counts))
        self._last = torch.from_numpy(np.repeat(firsts + lengths, counts))

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._rows)

    @property
    def rows(self) -> Int64[Tensor, " windows"]:
        """For each window the row of its present in :attr:`all_states`, and in whatever was computed beside them."""
        return self._rows

    @property
    def all_actions(self) -> Float[Tensor, "steps action"]:
        """Every recorded action, each once per step of an episode and the last one once more."""
        return self._actions

    @property
    def all_states(self) -> Float[Tensor, "rows state"]:
        """Every recorded state."""
        return self._states

    def take(self, indices: Int64[Tensor, " batch"]) -> Window:
        """Return some windows."""
        row, first, last = self._rows[indices], self._first[indices], self._last[indices]
        past = row[:, None] + torch.arange(-self._history + 1, 1)
        ahead = row[:, None] + torch.arange(self._horizon)
        is_before = past[:, :-1] < first[:, None]
        past = torch.maximum(past, first[:, None])
        last_action = last[:, None] - 1
        return Window(
            states=self._states[past],
            past_actions=self._actions[past[:, :-1]].masked_fill(is_before[..., None], 0.0),
            actions=self._actions[torch.minimum(ahead, last_action)],
            following=self._states[torch.minimum(ahead + 1, last[:, None])],
            is_real=ahead <= last_action,
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> Window:
        """Return windows drawn uniformly, with replacement."""
        return self.take(torch.randint(len(self), (batch_size,), generator=generator))


def discounted_returns(trajectories: Trajectories, *, discount: float) -> Float[Tensor, " rows"]:
    """Return the discounted return from every recorded state on, in the order of :attr:`WindowSource.all_states`.

    An episode that was cut off is taken to go on for ever as its last quarter did: its last state is worth the mean
    reward of that quarter over (1 - discount). A terminated episode ends with 0.

    Args:
        trajectories: The recording.
        discount: Factor from a step to the next, in (0, 1).
    """
    returns = []
    for episode in trajectories.episodes:
        tail = episode.rewards[-max(1, episode.num_steps // 4) :]
        value = 0.0 if episode.terminated else float(tail.mean()) / (1.0 - discount)
        values = [value]
        for reward in episode.rewards[::-1]:
            value = float(reward) + discount * value
            values.append(value)
        returns.append(np.array(values[::-1], dtype=np.float32))
    return torch.from_numpy(np.concatenate(returns))


def _padded_actions(episode: Episode) -> Float[np.ndarray, "steps_and_one action"]:
    """Return the actions with the last one once more, so that actions and states have the same rows."""
    return np.concatenate([episode.actions, episode.actions[-1:]])
