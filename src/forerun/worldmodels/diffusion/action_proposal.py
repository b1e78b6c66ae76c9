"""The action proposal of D-MPC: a diffusion model of the action sequences that the data has in a situation."""

import copy
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
from forerun.worldmodels.diffusion.plan_prior import PlanPrior
from forerun.worldmodels.diffusion.sampler import SamplerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalOptions:
    """How sequences are proposed at run time.

    Attributes:
        warm_share: Share of the sequences that begin from a warm start, where there is one.
        warm_level: How much noise these get, as a share of all levels in (0, 1].
        wide_share: Share of the others that begin from plans that the data has in any situation, rather than from pure
            noise: few denoising steps then keep the spread that the data has in this one.
        wide_level: How much noise these get, in (0, 1]; near 1 which plan it was is forgotten.
        sampler: Denoising; ``None``: as the model was configured.
    """

    warm_share: float = 0.0
    warm_level: float = 0.5
    wide_share: float = 0.0
    wide_level: float = 0.75
    sampler: SamplerConfig | None = None

    def __post_init__(self) -> None:
        for share, level in (("warm_share", "warm_level"), ("wide_share", "wide_level")):
            found = getattr(self, share), getattr(self, level)
            if not 0 <= found[0] <= 1 or not 0 < found[1] <= 1:
                raise ConfigError(f"{share}={found[0]}, {level}={found[1]}: must lie in [0, 1] and in (0, 1]")


class DiffusionProposal(nn.Module):
    """Draws sequences of F actions, given the history.

    Args:
        config: Network, noise levels, sampler.
        frame: Units.
        horizon: F.
        prior: The plans of the data in any situation; ``None``: no sequence can begin from one.
        wide_share: Of :class:`ProposalOptions`, unless they say otherwise.

    Raises:
        ConfigError: A share of the sequences is to begin from plans of the data, and there is no prior.

    Reference:
        Zhou et al. 2024 (arXiv 2410.05364), rho in algorithm 1.
    """

    def __init__(
        self,
        config: DiffusionConfig,
        frame: Frame,
        *,
        horizon: int,
        prior: PlanPrior | None = None,
        wide_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.frame, self.horizon, self.action_dim = frame, horizon, len(frame.actions.shift)
        self.prior = prior
        self.options = self._checked(ProposalOptions(wide_share=wide_share))
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
        num_warm = 0 if warm_start is None else round(options.warm_share * num_samples)
        num_wide = round(options.wide_share * (num_samples - num_warm))
        num_fresh, drawn = num_samples - num_warm - num_wide, []
        if num_fresh:
            context = self.frame.context(history).repeat_interleave(num_fresh, dim=0)
            fresh = self.diffusion.sample(context=context, aligned=None, generator=generator, sampler=options.sampler)
            drawn.append(self.frame.actions.inverse(fresh.unflatten(0, (history.num_envs, num_fresh))))
        if num_wide:
            assert self.prior is not None
            plans = self.prior.draw(history.num_envs * num_wide, generator)
            near = self.frame.actions.inverse(plans.reshape(history.num_envs, num_wide, self.horizon, -1))
            drawn.append(self.refine(history, near, level=options.wide_level, generator=generator))
        if num_warm:
            assert warm_start is not None
            near = warm_start[:, None].expand(-1, num_warm, -1, -1)
            drawn.append(self.refine(history, near, level=options.warm_level, generator=generator))
        return torch.cat(drawn, dim=1)

    @torch.no_grad()
    def refine(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon action"],
        *,
        level: float,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon action"]:
        """As :meth:`forerun.core.protocols.RefiningProposal.refine`: noised to a share of all levels, and denoised."""
        drawn = self.diffusion.sample(
            context=self.frame.context(history).repeat_interleave(actions.shape[1], dim=0),
            aligned=None,
            generator=generator,
            near=self.frame.actions(actions).clamp(-1.0, 1.0).flatten(0, 1),
            first=level,
            sampler=self.options.sampler,
        )
        return self.frame.actions.inverse(drawn.unflatten(0, actions.shape[:2]))

    def unfamiliarity(
        self, history: History, actions: Float[Tensor, "envs samples horizon action"]
    ) -> Float[Tensor, "envs samples"]:
        """Return how unlike the data's actions in this situation sequences of the whole horizon are; 0 at the least."""
        flat = self.diffusion.unfamiliarity(
            self.frame.actions(actions).flatten(0, 1),
            context=self.frame.context(history).repeat_interleave(actions.shape[1], dim=0),
            aligned=None,
        )
        return flat.unflatten(0, actions.shape[:2])

    def with_options(self, options: ProposalOptions) -> "DiffusionProposal":
        """Return the same model, weights shared, that draws in another way; raises as the constructor does."""
        other = copy.copy(self)
        other.options = self._checked(options)
        return other

    def _checked(self, options: ProposalOptions) -> ProposalOptions:
        if options.wide_share and self.prior is None:
            raise ConfigError(
                f"wide_share={options.wide_share}: these models do not know the data's plans; train them anew, or "
                "wide_share=0"
            )
        return options
