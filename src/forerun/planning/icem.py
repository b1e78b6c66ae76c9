"""iCEM: the cross-entropy method with coloured noise, kept elites and a shrinking population."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.planning.cem import CemConfig
from forerun.planning.gaussian_search import GaussianSearch, SearchLaw, fitted_to_elites
from forerun.planning.scoring import Candidates


@dataclass(frozen=True, kw_only=True, slots=True)
class IcemConfig(CemConfig):
    """Options of :class:`Icem`.

    Attributes:
        noise_exponent: The noise's power falls as frequency to this power: 0 is white, larger is smoother in time.
        kept_fraction: Share of the elites that the next iteration scores again.
        population_decay: Each iteration has the last one's candidates over this, but at least twice the elites.
    """

    noise_exponent: float = 2.0
    kept_fraction: float = 0.3
    population_decay: float = 1.25

    def __post_init__(self) -> None:
        CemConfig.__post_init__(self)
        if not 0 <= self.kept_fraction <= 1 or self.population_decay < 1 or self.noise_exponent < 0:
            raise ConfigError(
                f"kept_fraction={self.kept_fraction}, population_decay={self.population_decay}, "
                f"noise_exponent={self.noise_exponent}: must lie in [0, 1], be at least 1, and be at least 0"
            )


class Icem(GaussianSearch[IcemConfig]):
    """Draws smooth sequences; the mean is a candidate in the last iteration only, so that noise explores before.

    Reference:
        Pinneri et al. 2020 (arXiv 2008.06389).
    """

    def _draw(
        self, law: SearchLaw, iteration: int, *, generator: torch.Generator
    ) -> Float[Tensor, "envs samples horizon action"]:
        config = self.config
        shrunk = math.ceil(config.num_samples / config.population_decay**iteration)
        num_samples = min(config.num_samples, max(shrunk, 2 * config.num_elites))
        num_envs, horizon, action_dim = law.mean.shape
        noise = coloured_noise(
            (num_envs, num_samples, action_dim), horizon, exponent=config.noise_exponent, generator=generator
        ).to(law.mean)
        drawn = law.mean[:, None] + law.std[:, None] * noise.transpose(-1, -2)
        if iteration == config.num_iterations - 1:
            drawn[:, 0] = law.mean
        return drawn

    def _moved(self, law: SearchLaw, scored: Candidates) -> SearchLaw:
        elites = scored.elites(self.config.num_elites)
        fitted = fitted_to_elites(law, elites, momentum=self.config.momentum, min_std=self.config.min_std)
        num_kept = round(self.config.kept_fraction * self.config.num_elites)
        return replace(fitted, kept=elites.actions[:, :num_kept] if num_kept else None)


def coloured_noise(
    shape: tuple[int, ...], length: int, *, exponent: float, generator: torch.Generator
) -> Float[Tensor, "*shape length"]:
    r"""Draw Gaussian sequences whose power spectrum falls as :math:`f^{-\text{exponent}}`, each number of variance 1.

    Args:
        shape: Of everything but time.
        length: Numbers of a sequence.
        exponent: 0 gives white noise.
        generator: Of every number drawn.

    Reference:
        Timmer and König 1995; the lowest frequency's power serves for the mean too, as in iCEM.
    """
    frequencies = torch.fft.rfftfreq(length).clamp(min=1.0 / length)
    scales = frequencies ** (-0.5 * exponent)
    is_real = torch.zeros(len(scales), dtype=torch.bool)
    is_real[0] = True
    is_real[-1] = is_real[-1] or length % 2 == 0
    # A real coefficient stands alone, a complex one for itself and its conjugate: both then carry the same variance.
    scales = torch.where(is_real, math.sqrt(2.0) * scales, scales)
    variance = torch.where(is_real, scales**2, 4 * scales**2).sum() / length**2
    parts = torch.randn((*shape, len(scales), 2), generator=generator) * scales[:, None]
    parts[..., 1] = parts[..., 1].masked_fill(is_real, 0.0)
    return torch.fft.irfft(torch.view_as_complex(parts), n=length) / variance.sqrt()
