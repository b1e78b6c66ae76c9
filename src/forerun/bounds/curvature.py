r"""Effective dimensionality :math:`N_\mathrm{eff}(H, z) = \sum_i \lambda_i / (\lambda_i + z)` of a model's Hessian.

How many directions of the parameters the data have determined, at the scale z. By stochastic Lanczos quadrature: for a
random sign vector v of P parameters, :math:`P \, e_1^\top f(T) e_1` estimates :math:`\mathrm{tr} f(H)`, where T is the
tridiagonal matrix of Lanczos' iteration from v. All in float64, with full reorthogonalisation.

**Conventions matter.** The Hessian of the summed loss is n times that of the mean loss; with the same z the two numbers
can differ by a factor of a hundred. Negative eigenvalues count as zero. The interval covers the chance of the sign
vectors; the error of the quadrature is apart from it and falls with the number of steps.

Reference:
    MacKay, "Bayesian model comparison and backprop nets", NeurIPS 1991;
    Maddox, Benton, Wilson, "Rethinking parameter counting in deep models", arXiv 2003.02139;
    Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix Anal. 38 (2017).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp

from forerun.core.errors import ConfigError

_BREAKDOWN: Final = 1e-10
_STUDENT_975: Final = (
    12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""97.5% points of Student's law for 1 to 20 degrees of freedom; the last serves for more."""

MatrixVector = Callable[[Float[Tensor, " parameters"]], Float[Tensor, " parameters"]]


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectiveDimension:
    """An estimate with its circumstances.

    Attributes:
        value: Mean over the sign vectors.
        low: Lower end of the 95% interval (Student), at least 0.
        high: Upper end, at most the number of parameters.
        num_parameters: P.
        z: The scale.
        num_probes: Sign vectors.
        num_steps: Of Lanczos' iteration, each.
    """

    value: float
    low: float
    high: float
    num_parameters: int
    z: float
    num_probes: int
    num_steps: int


def effective_dimension(
    product: MatrixVector, num_parameters: int, *, z: float, num_probes: int = 10, num_steps: int = 60, seed: int = 0
) -> EffectiveDimension:
    """Estimate the effective dimensionality of a symmetric matrix that is known by its products.

    Args:
        product: Multiplies a float64 vector.
        num_parameters: Its length.
        z: Scale, above 0.
        num_probes: Random sign vectors, at least 2.
        num_steps: Lanczos steps, at least 1; cut to the number of parameters.
        seed: Of the vectors.

    Raises:
        ConfigError: A number is out of range.
    """
    if not (z > 0 and math.isfinite(z)) or num_probes < 2 or num_steps < 1 or num_parameters < 1:
        raise ConfigError(
            f"z={z}, num_probes={num_probes}, num_steps={num_steps}: need z > 0, 2 or more probes, 1 or more steps"
        )
    source = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(num_probes):
        start = torch.randint(0, 2, (num_parameters,), generator=source, dtype=torch.float64) * 2 - 1
        values, weights = lanczos_quadrature(product, start / math.sqrt(num_parameters), num_steps)
        positive = np.maximum(values, 0.0)
        estimates.append(num_parameters * float((weights * positive / (positive + z)).sum()))
    mean = float(np.mean(estimates))
    student = _STUDENT_975[min(num_probes - 1, len(_STUDENT_975)) - 1]
    half = student * float(np.std(estimates, ddof=1)) / math.sqrt(num_probes)
    return EffectiveDimension(
        value=mean,
        low=max(0.0, mean - half),
        high=min(float(num_parameters), mean + half),
        num_parameters=num_parameters,
        z=z,
        num_probes=num_probes,
        num_steps=min(num_steps, num_parameters),
    )


def lanczos_quadrature(
    product: MatrixVector, start: Float[Tensor, " parameters"], num_steps: int
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Return nodes and weights of the Gauss rule of a unit vector's spectral measure."""
    basis, diagonal, beside = [start], [], []
    for step in range(min(num_steps, len(start))):
        vector = product(basis[-1])
        diagonal.append(float(vector @ basis[-1]))
        stacked = torch.stack(basis)
        for _ in range(2):  # Twice is enough for orthogonality to rounding.
            vector = vector - stacked.T @ (stacked @ vector)
        length = float(vector.norm())
        if length < _BREAKDOWN * max(1.0, max(map(abs, diagonal))) or step == num_steps - 1:
            break
        beside.append(length)
        basis.append(vector / length)
    size = len(diagonal)
    tridiagonal = np.diag(diagonal) + np.diag(beside[: size - 1], 1) + np.diag(beside[: size - 1], -1)
    values, vectors = np.linalg.eigh(tridiagonal)
    return values, vectors[0] ** 2


def hessian_product(
    loss: Callable[[Float[Tensor, " parameters"]], Tensor], parameters: Float[Tensor, " parameters"]
) -> MatrixVector:
    """Return the product with the Hessian of a loss at a point, by forward over reverse differentiation.

    Args:
        loss: A scalar of the flat float64 parameters.
        parameters: The point.
    """
    slope = grad(loss)

    def product(vector: Tensor) -> Tensor:
        return jvp(slope, (parameters,), (vector,))[1].detach()

    return product
