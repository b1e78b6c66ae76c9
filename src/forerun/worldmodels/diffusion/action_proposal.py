"""The action proposal of D-MPC: a diffusion model of the action sequences that the data has in a situation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.data.windows import Window
from forerun.worldmodels.diffusion.conditional import ConditionalDiffusion
from forerun.worldmodels.diffusion.config import DiffusionConfig
from forerun.worldmodels.diffusion.frame import Frame
from forerun.worldmodels.diffusion.sampler import SamplerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalOptions:
    """How sequences are proposed at run time.

    Attributes:
        warm_share: Share of the sequences that begin from a warm start, where there is one.
        warm_level: How much noise these get, as a share of all levels in (0, 1].
        sampler: Denoising; ``None``: as the model was configured.
    """

    warm_share: float = 0.0
    warm_level: float = 0.5
    sampler: SamplerConfig | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.warm_share <= 1 or not 0 < self.warm_level <= 1:
            raise ConfigError(
                f"warm_share={self.warm_share}, warm_level={self.warm_level}: must lie in [0, 1] and in (0, 1]"
            )


class DiffusionProposal(nn.Module):
    """Draws sequences of F actions, given the history.

    Args:
        config: Network, noise levels, sampler.
        frame: Units.
        horizon: F.

    Reference:
        Zhou et al. 2024 (arXiv 2410.05364), rho in algorithm 1.
    """

    def __init__(self, config: DiffusionConfig, frame: Frame, *, horizon: int) -> None:
        super().__init__()
        self.frame, self.horizon, self.action_dim = frame, horizon, len(frame.actions.shift)
        self.options = ProposalOptions()
        self.diffusion = ConditionalDiffusion(
            config, horizon=horizon, channels=self.action_dim, context_dim=frame.context_dim
        )

    def loss(self, window: Window, *, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the denoising loss of recorded windows."""
        return self.diffusion.loss(
            self.frame.actions(window.actions),
            context=self.frame.window_context(window),
            aligned=None,
            is_real=window.is_real,
            generator=generator,
        )

    @torch.no_grad()
    def propose(
        self,
        history: History,
        num_samples: int,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
    ) -> Float[Tensor, "envs samples horizon action"]:
        """As :meth:`forerun.core.protocols.ActionProposal.propose`."""
        options = self.options
        context = self.frame.context(history)
        num_warm = 0 if warm_start is None else round(options.warm_share * num_samples)
        parts = []
        if num_warm < num_samples:
            rows = context.repeat_interleave(num_samples - num_warm, dim=0)
            fresh = self.diffusion.sample(context=rows, aligned=None, generator=generator, sampler=options.sampler)
            parts.append(fresh.unflatten(0, (history.num_envs, -1)))
        if num_warm:
            assert warm_start is not None
            near = self.frame.actions(warm_start).clamp(-1.0, 1.0).repeat_interleave(num_warm, dim=0)
            warm = self.diffusion.sample(
                context=context.repeat_interleave(num_warm, dim=0),
                aligned=None,
                generator=generator,
                near=near,
                first=options.warm_level,
                sampler=options.sampler,
            )
            parts.append(warm.unflatten(0, (history.num_envs, -1)))
        return self.frame.actions.inverse(torch.cat(parts, dim=1))
