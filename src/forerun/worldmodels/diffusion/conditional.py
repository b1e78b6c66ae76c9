"""A diffusion model of sequences, given what is known: the part that proposal and dynamics share."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from forerun.core.generator import keyed_generator
from forerun.models.denoiser import build_denoiser
from forerun.worldmodels.diffusion.config import DiffusionConfig
from forerun.worldmodels.diffusion.noise_schedule import NoiseSchedule
from forerun.worldmodels.diffusion.sampler import DiffusionSampler, SamplerConfig


class ConditionalDiffusion(nn.Module):
    """Sequences of F steps with C numbers, in normalised units.

    Args:
        config: Network, noise levels, sampler.
        horizon: F.
        channels: C.
        context_dim: Numbers known of the whole sequence.
        aligned_dim: Numbers known of each step; 0 for none.
    """

    def __init__(
        self, config: DiffusionConfig, *, horizon: int, channels: int, context_dim: int, aligned_dim: int = 0
    ) -> None:
        super().__init__()
        self._shape = (horizon, channels)
        self.denoiser = build_denoiser(
            config.denoiser, horizon=horizon, channels=channels, context_dim=context_dim, aligned_dim=aligned_dim
        )
        self._schedule = NoiseSchedule(config.schedule)
        self.sampler_config, self._focus = config.sampler, config.focus

    def loss(
        self,
        clean: Float[Tensor, "batch horizon channels"],
        *,
        context: Float[Tensor, "batch context"],
        aligned: Float[Tensor, "batch horizon aligned"] | None,
        is_real: Bool[Tensor, "batch horizon"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Return the mean squared error of the network's guess over the real steps.

        Args:
            clean: The sequences.
            context: Known of each.
            aligned: Known of each step.
            is_real: Steps that count.
            generator: Of levels and noise.
        """
        batch = len(clean)
        levels = self._schedule.config.num_train_timesteps
        level = torch.randint(1, levels + 1, (batch,), generator=generator)
        if self._focus:
            visited = torch.tensor(self._schedule.inference_levels(self.sampler_config.num_inference_steps)[:-1])
            chosen = visited[torch.randint(len(visited), (batch,), generator=generator)]
            level = torch.where(torch.rand((batch,), generator=generator) < self._focus, chosen, level)
        epsilon = torch.randn(clean.shape, generator=generator)
        noisy = self._schedule.noised(clean, epsilon, level)
        guess = self.denoiser(noisy, level / levels, self.denoiser.embed_known(context, aligned))
        errors = (guess - self._schedule.target(clean, epsilon, level)) ** 2
        weights = is_real.float()[..., None]
        return (errors * weights).sum() / (weights.sum() * clean.shape[-1])

    @torch.no_grad()
    def unfamiliarity(
        self,
        clean: Float[Tensor, "rows horizon channels"],
        *,
        context: Float[Tensor, "rows context"],
        aligned: Float[Tensor, "rows horizon aligned"] | None,
        share: float = 0.25,
    ) -> Float[Tensor, " rows"]:
        """Return how far the network pulls noised sequences away from where they were: little for what it learned.

        All rows get the same noise, so that they compare; it is a function of nothing.

        Args:
            clean: The sequences.
            context: Known of each.
            aligned: Known of each step.
            share: Level of the noise, as a share of all, in (0, 1].

        Returns:
            The mean squared error of the denoised sequences.

        Reference:
            Graham et al. 2022 (arXiv 2211.07740): reconstruction from a noise level tells what is out of distribution.
        """
        levels = self._schedule.config.num_train_timesteps
        level = max(1, round(share * levels))
        epsilon = torch.randn((1, *self._shape), generator=keyed_generator(0, "unfamiliarity")).expand_as(clean)
        noisy = self._schedule.noised(clean, epsilon, torch.full((len(clean),), level))
        guess = self.denoiser(noisy, torch.full((1,), level / levels), self.denoiser.embed_known(context, aligned))
        return (self._schedule.clean(noisy, guess, level) - clean).square().mean(dim=(1, 2))

    @torch.no_grad()
    def sample(
        self,
        *,
        context: Float[Tensor, "rows context"],
        aligned: Float[Tensor, "rows horizon aligned"] | None,
        generator: torch.Generator,
        near: Float[Tensor, "rows horizon channels"] | None = None,
        first: float = 1.0,
        sampler: SamplerConfig | None = None,
    ) -> Float[Tensor, "rows horizon channels"]:
        """Draw a sequence for each row.

        Args:
            context: Known of each.
            aligned: Known of each step.
            generator: Of every number drawn.
            near: Sequences to begin from, noised to a share ``first`` of the levels; ``None``: pure noise.
            first: See ``near``.
            sampler: How; ``None``: as configured.
        """
        known = self.denoiser.embed_known(context, aligned)

        def denoise(noisy: Tensor, level: Tensor) -> Tensor:
            return self.denoiser(noisy, level, known)

        chosen = DiffusionSampler(sampler or self.sampler_config, self._schedule)
        if near is None:
            return chosen.sample(denoise, (len(context), *self._shape), generator=generator)
        return chosen.refine(denoise, near, first=first, generator=generator)
