"""The units in which the models of D-MPC see a task: normalised histories and actions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.control import ActionBounds, History
from forerun.data.normalizer import Normalizer
from forerun.data.windows import Window
from forerun.worldmodels.diffusion.waves import WaveConfig, with_waves

_LARGEST_STATE = 6.0
"""States are clamped to this many standard deviations before a network sees them."""


class Frame(nn.Module):
    """Normalises what every model is given. Each model has its own copy, so that it can be saved and tuned alone.

    Args:
        states: To mean 0 and standard deviation 1.
        actions: From their box to [-1, 1].
        history: H.
        waves: Numbers of a state that are seen as waves too; ``None``: none.
    """

    def __init__(
        self, states: Normalizer, actions: Normalizer, *, history: int, waves: WaveConfig | None = None
    ) -> None:
        super().__init__()
        self.states, self.actions, self.history = states, actions, history
        self.waves = waves or WaveConfig()

    @classmethod
    def of_data(
        cls,
        states: Float[Tensor, "rows state"],
        bounds: ActionBounds,
        *,
        history: int,
        waves: WaveConfig | None = None,
    ) -> "Frame":
        """Return the frame of recorded states and a box of actions."""
        actions = Normalizer.of_range(bounds.low, bounds.high)
        return cls(Normalizer.of_mean_and_std(states), actions, history=history, waves=waves)

    @property
    def context_dim(self) -> int:
        """Numbers of a context."""
        num_features = len(self.states.shift) + self.waves.num_features
        return self.history * num_features + (self.history - 1) * len(self.actions.shift)

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
        seen = with_waves(self.states(states).clamp(-_LARGEST_STATE, _LARGEST_STATE), self.waves)
        return torch.cat([seen.flatten(1), self.actions(actions).flatten(1)], dim=-1)

    def window_context(self, window: Window) -> Float[Tensor, "batch context"]:
        """Return the context of recorded windows."""
        return self.context(History(states=window.states, actions=window.past_actions))
