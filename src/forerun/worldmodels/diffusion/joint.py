"""Baseline: one diffusion model of actions and states together, as in Diffuser; nothing of it can be tuned alone."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.control import History
from forerun.data.normalizer import Normalizer
from forerun.data.windows import Window
from forerun.worldmodels.diffusion.conditional import ConditionalDiffusion
from forerun.worldmodels.diffusion.config import DiffusionConfig
from forerun.worldmodels.diffusion.frame import Frame


class JointDiffusion(nn.Module):
    """Draws the next F actions and the F states that they lead to at once, given the history.

    What it learns of a changed world changes the actions it proposes too: they drift to those of the new recording.

    Args:
        config: Network, noise levels, sampler.
        frame: Units of what is given, and of actions.
        offsets: Units of the states' offsets from the present [horizon, state].

    Reference:
        Janner et al. 2022 (arXiv 2205.09991), without its guidance: samples are ranked, as in D-MPC.
    """

    def __init__(self, config: DiffusionConfig, frame: Frame, offsets: Normalizer) -> None:
        super().__init__()
        self.frame, self.offsets, self.action_dim = frame, offsets, len(frame.actions.shift)
        horizon, state_dim = offsets.shift.shape
        self.horizon = horizon
        self.diffusion = ConditionalDiffusion(
            config, horizon=horizon, channels=state_dim + self.action_dim, context_dim=frame.context_dim
        )

    def loss(self, window: Window, *, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the denoising loss of recorded windows."""
        offsets = self.offsets(window.following - window.states[:, -1:])
        limit = self.diffusion.sampler_config.clip or float("inf")
        return self.diffusion.loss(
            torch.cat([offsets.clamp(-limit, limit), self.frame.actions(window.actions)], dim=-1),
            context=self.frame.window_context(window),
            aligned=None,
            is_real=window.is_real,
            generator=generator,
        )

    @torch.no_grad()
    def draw(
        self, history: History, num_samples: int, *, generator: torch.Generator
    ) -> tuple[Float[Tensor, "envs samples horizon action"], Float[Tensor, "envs samples horizon state"]]:
        """As :meth:`forerun.core.protocols.JointModel.draw`; actions lie in their box."""
        context = self.frame.context(history).repeat_interleave(num_samples, dim=0)
        drawn = self.diffusion.sample(context=context, aligned=None, generator=generator)
        drawn = drawn.unflatten(0, (history.num_envs, num_samples))
        offsets, actions = drawn[..., : -self.action_dim], drawn[..., -self.action_dim :]
        states = history.present[:, None, None] + self.offsets.inverse(offsets)
        return self.frame.actions.inverse(actions.clamp(-1.0, 1.0)), states
