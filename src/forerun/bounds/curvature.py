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


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledSpectrum:
    """Gauss rules from several sign vectors: any scale z can be read off them.

    Attributes:
        nodes: Of each rule, in float64.
        weights: Of each rule, with sum one.
        num_parameters: P.
        num_steps: Lanczos steps, each.
    """

    nodes: tuple[Float[np.ndarray, " steps"], ...]
    weights: tuple[Float[np.ndarray, " steps"], ...]
    num_parameters: int
    num_steps: int

    def effective_dimension(self, z: float) -> EffectiveDimension:
        """Return the estimate at one scale.

        Raises:
            ConfigError: z is not above 0.
        """
        if not (z > 0 and math.isfinite(z)):
            raise ConfigError(f"z={z}: need z > 0, such as 1")
        positive = [np.maximum(nodes, 0.0) for nodes in self.nodes]
        shares = [float((w * x / (x + z)).sum()) for x, w in zip(positive, self.weights, strict=True)]
        estimates = self.num_parameters * np.array(shares)
        mean, num_probes = float(estimates.mean()), len(estimates)
        student = _STUDENT_975[min(num_probes - 1, len(_STUDENT_975)) - 1]
        half = student * float(estimates.std(ddof=1)) / math.sqrt(num_probes)
        return EffectiveDimension(
            value=mean,
            low=max(0.0, mean - half),
            high=min(float(self.num_parameters), mean + half),
            num_parameters=self.num_parameters,
            z=z,
            num_probes=num_probes,
            num_steps=self.num_steps,
        )


def sample_spectrum(
    product: MatrixVector, num_parameters: int, *, num_probes: int = 10, num_steps: int = 60, seed: int = 0
) -> SampledSpectrum:
    """Run Lanczos' iteration from random sign vectors.

    Args:
        product: Multiplies a float64 vector by a symmetric matrix.
        num_parameters: The vector's length.
        num_probes: Random sign vectors, at least 2.
        num_steps: Lanczos steps, at least 1; cut to the number of parameters.
        seed: Of the vectors.

    Raises:
        ConfigError: A number is out of range.
    """
    if num_probes < 2 or num_steps < 1 or num_parameters < 1:
        raise ConfigError(
            f"num_probes={num_probes}, num_steps={num_steps}, num_parameters={num_parameters}: need 2 or more probes, "
            "1 or more steps and parameters"
        )
    source = torch.Generator().manual_seed(seed)
    rules = []
    for _ in range(num_probes):
        start = torch.randint(0, 2, (num_parameters,), generator=source, dtype=torch.float64) * 2 - 1
        rules.append(lanczos_quadrature(product, start / math.sqrt(num_parameters), num_steps))
    return SampledSpectrum(
        nodes=tuple(nodes for nodes, _ in rules),
        weights=tuple(weights for _, weights in rules),
        num_parameters=num_parameters,
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
    """Return the product with the Hessian of a loss at a point, by differentiating the gradient's graph.

    Args:
        loss: A scalar of the flat float64 parameters.
        parameters: The point.
    """
    point = parameters.detach().requires_grad_()
    slope = torch.autograd.grad(loss(point), point, create_graph=True)[0]

    def product(vector: Tensor) -> Tensor:
        return torch.autograd.grad(slope, point, grad_outputs=vector, retain_graph=True)[0]

    return product
