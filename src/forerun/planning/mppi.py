"""Model predictive path integral control: the mean moves to the candidates weighted by their scores."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.planning.gaussian_search import GaussianSearch, GaussianSearchConfig, SearchLaw, white_noise
from forerun.planning.scoring import Candidates


@dataclass(frozen=True, kw_only=True, slots=True)
class MppiConfig(GaussianSearchConfig):
    """Options of :class:`Mppi`.

    Attributes:
        temperature: In units of the standard deviation of an iteration's usable scores; low follows the best candidate.
        num_elites: Only this many best candidates have a weight; ``None``: all.
        adapts_std: Whether the standard deviation follows the weighted candidates, as in TD-MPC2.
        min_std: Least standard deviation where it does.
    """

    temperature: float = 0.5
    num_elites: int | None = None
    adapts_std: bool = False
    min_std: float = 0.05

    def __post_init__(self) -> None:
        GaussianSearchConfig.__post_init__(self)
        if not self.temperature > 0 or self.min_std < 0:
            raise ConfigError(f"temperature={self.temperature}, min_std={self.min_std}: must be above 0 and at least 0")
        if self.num_elites is not None and self.num_elites < 1:
            raise ConfigError(f"num_elites={self.num_elites}: must be at least 1, or None for all candidates")


class Mppi(GaussianSearch[MppiConfig]):
    r"""Moves the mean to :math:`\sum_i w_i a_i` with weights :math:`w_i \propto \exp(s_i / \lambda)`.

    Reference:
        Williams et al. 2017 (arXiv 1707.02342). Scores are scaled by their spread, so that one temperature serves every
        objective; ``num_elites`` and ``adapts_std`` are those of TD-MPC2 (arXiv 2310.16828).
    """

    def _draw(
        self, law: SearchLaw, iteration: int, *, generator: torch.Generator
    ) -> Float[Tensor, "envs samples horizon action"]:
        noise = white_noise(law, self.config.num_samples, generator=generator)
        noise[:, 0] = 0.0
        return law.mean[:, None] + law.std[:, None] * noise

    def _moved(self, law: SearchLaw, scored: Candidates) -> SearchLaw:
        elites = scored.elites(self.config.num_elites or scored.scores.shape[1])
        weights = score_weights(elites.scores, temperature=self.config.temperature)[..., None, None]
        mean = (weights * elites.actions).sum(dim=1)
        if not self.config.adapts_std:
            return replace(law, mean=mean)
        variance = (weights * (elites.actions - mean[:, None]) ** 2).sum(dim=1)
        return replace(law, mean=mean, std=variance.sqrt().clamp(min=self.config.min_std))


def score_weights(scores: Float[Tensor, "envs samples"], *, temperature: float) -> Float[Tensor, "envs samples"]:
    """Return weights that sum to 1: a softmax of the scores over (temperature x their spread).

    Args:
        scores: Finite. Those far below the best (broken constraints) get no weight and don't widen the spread.
        temperature: Above 0.
    """
    gaps = scores - scores.amax(dim=1, keepdim=True)
    is_near = gaps > -1e6
    near = gaps.masked_fill(~is_near, 0.0)
    count = is_near.sum(dim=1, keepdim=True)
    mean = near.sum(dim=1, keepdim=True) / count
    spread = ((near - mean).masked_fill(~is_near, 0.0) ** 2).sum(dim=1, keepdim=True).div(count).sqrt()
    return torch.softmax(gaps / (temperature * spread.clamp(min=1e-12)), dim=1)
