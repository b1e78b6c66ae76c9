"""The multi-step dynamics of D-MPC: a diffusion model of the states that follow a sequence of actions."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.data.normalizer import Normalizer
from forerun.data.windows import Window, WindowSource
from forerun.worldmodels.diffusion.conditional import ConditionalDiffusion
from forerun.worldmodels.diffusion.config import DiffusionConfig
from forerun.worldmodels.diffusion.frame import Frame
from forerun.worldmodels.diffusion.sampler import SamplerConfig

_NUM_MEASURED = 4096


class DiffusionDynamics(nn.Module):
    """Draws the next F states at once, given the history and F actions.

    What is drawn is the offset from the present, in units of the spread that each number of the state has after each
    number of steps: near steps, whose offsets are small, then count as much as far ones.

    Args:
        config: Network, noise levels, sampler.
        frame: Units of what is given.
        offsets: Units of the offsets [horizon, state].

    Reference:
        Zhou et al. 2024 (arXiv 2410.05364), p_d in algorithm 1.
    """

    def __init__(self, config: DiffusionConfig, frame: Frame, offsets: Normalizer) -> None:
        super().__init__()
        self.horizon, state_dim = offsets.shift.shape
        self.frame, self.offsets, self.action_dim = frame, offsets, len(frame.actions.shift)
        self.sampler: SamplerConfig | None = None
        """How futures are drawn; ``None``: as configured."""
        self.diffusion = ConditionalDiffusion(
            config,
            horizon=self.horizon,
            channels=state_dim,
            context_dim=frame.context_dim,
            aligned_dim=self.action_dim,
        )

    def loss(self, window: Window, *, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the denoising loss of recorded windows."""
        offsets = self.offsets(window.following - window.states[:, -1:])
        limit = self.diffusion.sampler_config.clip or float("inf")
        return self.diffusion.loss(
            offsets.clamp(-limit, limit),
            context=self.frame.window_context(window),
            aligned=self.frame.actions(window.actions),
            is_real=window.is_real,
            generator=generator,
        )

    @torch.no_grad()
    def rollout(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon action"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon state"]:
        """As :meth:`forerun.core.protocols.Dynamics.rollout`.

        Raises:
            ConfigError: There are more actions than the model's horizon; fewer are filled up with the last one.
        """
        num_envs, num_samples, steps, _ = actions.shape
        if steps > self.horizon:
            raise ConfigError(f"{steps} actions for a dynamics of {self.horizon} steps: plan a shorter horizon")
        filled = torch.cat([actions, actions[:, :, -1:].expand(-1, -1, self.horizon - steps, -1)], dim=2)
        drawn = self.diffusion.sample(
            context=self.frame.context(history).repeat_interleave(num_samples, dim=0),
            aligned=self.frame.actions(filled).flatten(0, 1),
            generator=generator,
            sampler=self.sampler,
        )
        states = history.present[:, None, None] + self.offsets.inverse(drawn).unflatten(0, (num_envs, num_samples))
        return states[:, :, :steps]

    def unfamiliarity(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon state"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """Return how unlike what the data shows after such actions futures of the whole horizon are; 0 at the least."""
        flat = self.diffusion.unfamiliarity(
            self.offsets(states - history.present[:, None, None]).flatten(0, 1),
            context=self.frame.context(history).repeat_interleave(actions.shape[1], dim=0),
            aligned=self.frame.actions(actions).flatten(0, 1),
        )
        return flat.unflatten(0, actions.shape[:2])

    def with_sampler(self, sampler: SamplerConfig) -> "DiffusionDynamics":
        """Return the same model, weights shared, that draws in another way."""
        other = copy.copy(self)
        other.sampler = sampler
        return other


def offset_normalizer(source: WindowSource, generator: torch.Generator) -> Normalizer:
    """Return the units of state offsets [horizon, state], from windows that lie inside their episodes whole.

    Args:
        source: Windows; padded ones are left out where there are others.
        generator: Of the choice.
    """
    window = source.draw(_NUM_MEASURED, generator).whole()
    return Normalizer.of_mean_and_std(window.following - window.states[:, -1:])
