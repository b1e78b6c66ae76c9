"""The cross-entropy method: refit a Gaussian to the best candidates."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.planning.gaussian_search import (
    GaussianSearch,
    GaussianSearchConfig,
    SearchLaw,
    fitted_to_elites,
    white_noise,
)
from forerun.planning.scoring import Candidates


@dataclass(frozen=True, kw_only=True, slots=True)
class CemConfig(GaussianSearchConfig):
    """Options of :class:`Cem`.

    Attributes:
        num_elites: Best candidates that the Gaussian is refitted to.
        momentum: Share of the old mean and standard deviation that stays, in [0, 1).
        min_std: Least standard deviation.
    """

    num_elites: int = 30
    momentum: float = 0.0
    min_std: float = 0.0

    def __post_init__(self) -> None:
        # The zero-argument super() does not find a class that slots=True has rebuilt.
        GaussianSearchConfig.__post_init__(self)
        if not 2 <= self.num_elites <= self.num_samples:
            raise ConfigError(
                f"num_elites={self.num_elites}: must lie in [2, num_samples={self.num_samples}]; a standard deviation "
                "needs two"
            )
        if not 0 <= self.momentum < 1 or self.min_std < 0:
            raise ConfigError(f"momentum={self.momentum}, min_std={self.min_std}: must lie in [0, 1) and be at least 0")


class Cem(GaussianSearch[CemConfig]):
    """Draws around the mean, with the mean itself as the first candidate, and refits mean and std to the elites.

    Reference:
        Rubinstein 1999; as in LeWorldModel (arXiv 2603.19312, appendix D) with ``init_std=1``, ``num_samples=300``,
        ``num_elites=30``, ``returns="mean"`` and no bounds.
    """

    def _draw(
        self, law: SearchLaw, iteration: int, *, generator: torch.Generator
    ) -> Float[Tensor, "envs samples horizon action"]:
        noise = white_noise(law, self.config.num_samples, generator=generator)
        noise[:, 0] = 0.0
        return law.mean[:, None] + law.std[:, None] * noise

    def _moved(self, law: SearchLaw, scored: Candidates) -> SearchLaw:
        elites = scored.elites(self.config.num_elites)
        return fitted_to_elites(law, elites, momentum=self.config.momentum, min_std=self.config.min_std)
