"""The units in which the models of D-MPC see a task: normalised histories and actions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.control import ActionBounds, History
from forerun.data.normalizer import Normalizer
from forerun.data.windows import Window

_LARGEST_STATE = 6.0
"""States are clamped to this many standard deviations before a network sees them."""


class Frame(nn.Module):
    """Normalises what every model is given. Each model has its own copy, so that it can be saved and tuned alone.

    Args:
        states: To mean 0 and standard deviation 1.
        actions: From their box to [-1, 1].
        history: H.
    """

    def __init__(self, states: Normalizer, actions: Normalizer, *, history: int) -> None:
        super().__init__()
        self.states, self.actions, self.history = states, actions, history

    @classmethod
    def of_data(cls, states: Float[Tensor, "rows state"], bounds: ActionBounds, *, history: int) -> "Frame":
        """Return the frame of recorded states and a box of actions."""
        return cls(Normalizer.of_mean_and_std(states), Normalizer.of_range(bounds.low, bounds.high), history=history)

    @property
    def context_dim(self) -> int:
        """Numbers of a context."""
        return self.history * len(self.states.shift) + (self.history - 1) * len(self.actions.shift)

    def context(self, history: History) -> Float[Tensor, "envs context"]:
        """Return the last H states and the actions between them as one vector, normalised.

        A history that is shorter is filled as a window at the begin of an episode is: its first state repeated, with
        actions of 0.
        """
        missing = self.history - history.states.shape[1]
        states, actions = history.states[:, -self.history :], history.actions
        if missing > 0:
            states = torch.cat([states[:, :1].expand(-1, missing, -1), states], dim=1)
            actions = torch.cat([actions.new_zeros(len(states), missing, len(self.actions.shift)), actions], dim=1)
        actions = actions[:, actions.shape[1] - (self.history - 1) :]
        seen = self.states(states).clamp(-_LARGEST_STATE, _LARGEST_STATE)
        return torch.cat([seen.flatten(1), self.actions(actions).flatten(1)], dim=-1)

    def window_context(self, window: Window) -> Float[Tensor, "batch context"]:
        """Return the context of recorded windows."""
        return self.context(History(states=window.states, actions=window.past_actions))
