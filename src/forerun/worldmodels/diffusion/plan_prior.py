"""The plans that the data has anywhere, as a Gaussian: where a sampler of few steps begins."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.data.normalizer import Normalizer
from forerun.data.windows import WindowSource

_NUM_MEASURED = 16384


class PlanPrior(nn.Module):
    """A Gaussian of whole plans, whatever the situation, in normalised units.

    A sampler that begins at pure noise spends its first step on the mean: what it knows of a plan there is nothing. One
    that begins at a plan of the data, under as much noise as hides which, has the spread of the data before it looks at
    the situation, and few steps keep it.

    Args:
        mean: Of each action of a plan, one after the other.
        factor: A root of their covariance.

    Reference:
        Zheng et al. 2022 (arXiv 2202.09671): a diffusion that is cut short needs a law to begin from.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, mean: Float[Tensor, " numbers"], factor: Float[Tensor, "numbers numbers"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().clone())
        self.register_buffer("factor", factor.float().clone())

    @classmethod
    def of_data(cls, source: WindowSource, actions: Normalizer, generator: torch.Generator) -> "PlanPrior":
        """Return the Gaussian of recorded plans.

        Args:
            source: Windows.
            actions: Units of actions.
            generator: Of the choice of windows.
        """
        flat = actions(source.draw(_NUM_MEASURED, generator).whole().actions).flatten(1).double()
        covariance = torch.cov(flat.T, correction=0) + 1e-6 * torch.eye(flat.shape[1], dtype=torch.float64)
        return cls(flat.mean(dim=0), torch.linalg.cholesky(covariance))

    @classmethod
    def unknown(cls, num_numbers: int) -> "PlanPrior":
        """Return a Gaussian to be filled from a file."""
        return cls(torch.zeros(num_numbers), torch.eye(num_numbers))

    @torch.no_grad()
    def draw(self, num_rows: int, generator: torch.Generator) -> Float[Tensor, "rows numbers"]:
        """Return plans, each as one vector."""
        noise = torch.randn((num_rows, len(self.mean)), generator=generator)
        return self.mean + noise @ self.factor.T
