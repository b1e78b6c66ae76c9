"""What futures are worth: the return that the data had, from a plan on (the paper's J) or from a state on."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.control import History
from forerun.data.normalizer import Normalizer
from forerun.data.windows import Window
from forerun.models.denoiser import DenoiserConfig
from forerun.models.regressor import Regressor
from forerun.worldmodels.diffusion.frame import Frame
from forerun.worldmodels.diffusion.waves import WaveConfig, with_waves


class PlanValue(nn.Module):
    """The discounted return from the present on, given a plan and the states it leads to: an objective of its own.

    It knows the task's reward only through the data; a new reward needs :class:`StateValue` at most.

    Args:
        config: Shape of the network.
        frame: Units of states and actions.
        offsets: Units of the states' offsets [horizon, state].
        returns: Units of the return.

    Reference:
        Zhou et al. 2024 (arXiv 2410.05364), J in algorithm 1.
    """

    def __init__(self, config: DenoiserConfig, frame: Frame, offsets: Normalizer, returns: Normalizer) -> None:
        super().__init__()
        self.frame, self.offsets, self.returns = frame, offsets, returns
        horizon, state_dim = offsets.shift.shape
        channels = state_dim + len(frame.actions.shift)
        self.network = Regressor(config, context_dim=frame.context_dim, horizon=horizon, channels=channels)

    def loss(self, window: Window, target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Return the mean squared error, in normalised units.

        Args:
            window: Recorded futures; after an episode's end they stand still, as their return does.
            target: Discounted return from the present on.
        """
        guess = self._guess(self.frame.window_context(window), window.states[:, -1:], window.following, window.actions)
        return ((guess - self.returns(target)) ** 2).mean()

    @torch.no_grad()
    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`."""
        num_samples = states.shape[1]
        context = self.frame.context(history).repeat_interleave(num_samples, dim=0)
        present = history.present.repeat_interleave(num_samples, dim=0)[:, None]
        guess = self._guess(context, present, states.flatten(0, 1), actions.flatten(0, 1))
        return self.returns.inverse(guess).unflatten(0, (-1, num_samples))

    def _guess(
        self,
        context: Float[Tensor, "rows context"],
        present: Float[Tensor, "rows one state"],
        following: Float[Tensor, "rows horizon state"],
        actions: Float[Tensor, "rows horizon action"],
    ) -> Float[Tensor, " rows"]:
        offsets = self.offsets(following - present).clamp(-6.0, 6.0)
        return self.network(context, torch.cat([offsets, self.frame.actions(actions)], dim=-1))


class StateValue(nn.Module):
    """The discounted return from a state on: what the end of a horizon is worth.

    Args:
        config: Shape of the network.
        states: Units of states.
        returns: Units of the return.
        expectile: In (0, 1): 0.5 learns the mean of the targets, more learns what their better part is.
        waves: Numbers of a state that are seen as waves too; ``None``: none.

    Reference:
        Kostrikov et al. 2021 (arXiv 2110.06169) for expectiles. The targets are returns of the data, or those of
        :mod:`~forerun.worldmodels.diffusion.stitching`.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        states: Normalizer,
        returns: Normalizer,
        *,
        expectile: float = 0.5,
        waves: WaveConfig | None = None,
    ) -> None:
        super().__init__()
        self.states, self.returns, self._expectile = states, returns, expectile
        self.waves = waves or WaveConfig()
        self.network = Regressor(config, context_dim=len(states.shift) + self.waves.num_features)

    def loss(self, states: Float[Tensor, "batch state"], target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Return the expectile loss, in normalised units."""
        gaps = self.returns(target) - self.network(self._features(states))
        weights = torch.where(gaps > 0, self._expectile, 1 - self._expectile)
        return 2 * (weights * gaps**2).mean()

    @torch.no_grad()
    def forward(self, states: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch"]:
        """Return the value of each state, in units of the reward."""
        flat = self._features(states.flatten(0, -2))
        return self.returns.inverse(self.network(flat)).unflatten(0, states.shape[:-1])

    def _features(self, states: Float[Tensor, "batch state"]) -> Float[Tensor, "batch features"]:
        return with_waves(self.states(states).clamp(-6.0, 6.0), self.waves)
