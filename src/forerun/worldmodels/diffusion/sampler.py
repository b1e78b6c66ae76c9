"""From noise to samples, with as few steps as wanted: DDIM, which is DDPM at eta = 1 and Euler's method on a flow."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.worldmodels.diffusion.noise_schedule import NoiseSchedule

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy [rows, ...], level [1] in [0, 1]) -> the network's guess."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """Options of :class:`DiffusionSampler`.

    Attributes:
        num_inference_steps: Denoising steps.
        eta: Share of a DDPM step's fresh noise: 0 is DDIM, 1 is DDPM. Only the cosine schedule has more than 0.
        clip: Clean guesses are clamped to [-clip, clip] at every step, in normalised units; 0 clamps nothing.
        initial_noise: Standard deviation of the first noise; below 1 samples are drawn nearer to the likeliest.
    """

    num_inference_steps: int = 8
    eta: float = 0.0
    clip: float = 1.0
    initial_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ConfigError(f"num_inference_steps={self.num_inference_steps}: must be at least 1")
        if not 0 <= self.eta <= 1 or self.clip < 0 or self.initial_noise < 0:
            raise ConfigError(
                f"eta={self.eta}, clip={self.clip}, initial_noise={self.initial_noise}: eta must lie in [0, 1], the "
                "others must be at least 0"
            )


class DiffusionSampler:
    """Denoises step by step.

    Args:
        config: Options.
        schedule: Of the network's training.

    Raises:
        ConfigError: There are more steps than the schedule has, or fresh noise on a flow.

    Reference:
        Song, Meng, Ermon 2020 (arXiv 2010.02502), equations 12 and 16.
    """

    def __init__(self, config: SamplerConfig, schedule: NoiseSchedule) -> None:
        if config.eta > 0 and schedule.config.kind == "flow":
            raise ConfigError(f"eta={config.eta} with a flow: its lines are deterministic; take eta=0")
        schedule.inference_levels(config.num_inference_steps)
        self.config, self._schedule = config, schedule

    @torch.no_grad()
    def sample(
        self, denoise: Denoise, shape: tuple[int, ...], *, generator: torch.Generator
    ) -> Float[Tensor, "rows ..."]:
        """Draw samples from noise.

        Args:
            denoise: The network.
            shape: Of the samples, rows first.
            generator: Of every number drawn.
        """
        begin = self.config.initial_noise * torch.randn(shape, generator=generator)
        return self._denoised(denoise, begin, first=1.0, generator=generator)

    @torch.no_grad()
    def refine(
        self, denoise: Denoise, clean: Float[Tensor, "rows ..."], *, first: float, generator: torch.Generator
    ) -> Float[Tensor, "rows ..."]:
        """Noise given samples to a level and denoise them again: neighbours of them, under the network's law.

        Args:
            denoise: The network.
            clean: Where to begin, in normalised units.
            first: Share of the noise levels in (0, 1]; low stays close.
            generator: Of every number drawn.

        Reference:
            Meng et al. 2021 (arXiv 2108.01073), SDEdit.
        """
        level = self._schedule.inference_levels(self.config.num_inference_steps, first=first)[0]
        epsilon = torch.randn(clean.shape, generator=generator)
        noisy = self._schedule.noised(clean, epsilon, torch.full((len(clean),), level))
        return self._denoised(denoise, noisy, first=first, generator=generator)

    def _denoised(self, denoise: Denoise, noisy: Tensor, *, first: float, generator: torch.Generator) -> Tensor:
        schedule, config = self._schedule, self.config
        levels = schedule.inference_levels(config.num_inference_steps, first=first)
        for level, following in itertools.pairwise(levels):
            share = torch.full((1,), level / schedule.config.num_train_timesteps)
            clean = schedule.clean(noisy, denoise(noisy, share), level)
            if config.clip > 0:
                clean = clean.clamp(-config.clip, config.clip)
            if following == 0:
                return clean
            signal, noise = float(schedule.signal[level]), float(schedule.noise[level])
            next_signal, next_noise = float(schedule.signal[following]), float(schedule.noise[following])
            epsilon = (noisy - signal * clean) / noise
            fresh = config.eta * next_noise / noise * (max(0.0, 1 - (signal / next_signal) ** 2)) ** 0.5
            noisy = next_signal * clean + max(0.0, next_noise**2 - fresh**2) ** 0.5 * epsilon
            if fresh > 0:
                noisy = noisy + fresh * torch.randn(noisy.shape, generator=generator)
        return noisy
