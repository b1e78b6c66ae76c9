r"""SIGReg: how far a batch of embeddings is from an isotropic Gaussian, along random directions.

For embeddings z (steps T, batch B, dimension D) and random unit directions, the empirical characteristic function of
every projection h is compared with that of N(0, 1) (the test of Epps and Pulley):

.. math::
    S_m = N \sum_k w_k \left[ (\overline{\cos t_k h_{bm}} - \varphi_k)^2 + \overline{\sin t_k h_{bm}}^2 \right],
    \qquad \varphi_k = e^{-t_k^2 / 2}

with knots t_k evenly from 0 to 3, w_k the trapezoid weights (doubled, as the integrand is even) times phi_k, and N the
number of embeddings that the means are over. SIGReg is the mean over steps and directions.

Two ways to the same number: :func:`eager_statistic` is the formula, with autograd's gradient; :func:`sigreg_statistic`
computes cosines and sines of all knots from those of the first by rotation, and its gradient in closed form.

Reference:
    Balestriero and LeCun 2025 (arXiv 2511.08544); Maes et al. 2026 (arXiv 2603.19312). The paper's text integrates over
    [0.2, 4]; all published results come from [0, 3], as here.

Shape letters: T steps, B batch, D latent dimension, M directions, K knots.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator

SigRegScaling = Literal["published", "batch_invariant"]

REFERENCE_BATCH: Final = 128
"""Batch at which both scalings agree: the one of the published runs."""

_BLOCK_NUMBERS: Final = 1 << 15
"""Projections worked on at a time: with their cosines, sines and sums they stay in the cache of a core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SigRegConfig:
    """How the distance from a Gaussian is measured.

    Attributes:
        num_projections: Random directions, drawn anew at every call.
        num_knots: Points of the quadrature, at least 2.
        max_t: Last knot; the first is 0.
        scaling: ``published`` multiplies the distance by the batch size, so that a larger batch presses harder against
            the prediction loss; ``batch_invariant`` multiplies it by 128 whatever the batch.
        num_subspaces: Parts that the space is cut into, each of which is to be Gaussian on its own, whatever parts have
            to do with each other (Sub-JEPA); 1: the space as a whole, as published.
        subspace_seed: Draws the cut, which stays for the whole of a training.
    """

    num_projections: int = 1024
    num_knots: int = 17
    max_t: float = 3.0
    scaling: SigRegScaling = "published"
    num_subspaces: int = 1
    subspace_seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range.
        """
        if self.num_projections < 1:
            raise ConfigError(f"sigreg.num_projections={self.num_projections}: must be >= 1")
        if not 1 <= self.num_subspaces <= self.num_projections:
            raise ConfigError(
                f"sigreg.num_subspaces={self.num_subspaces}: must lie in [1, num_projections={self.num_projections}]; "
                "every part needs a direction"
            )
        if self.num_knots < 2:
            raise ConfigError(f"sigreg.num_knots={self.num_knots}: must be >= 2, for one interval to integrate over")
        if not 0 < self.max_t < math.inf:
            raise ConfigError(f"sigreg.max_t={self.max_t}: must be finite and > 0")
        if self.scaling not in ("published", "batch_invariant"):
            raise ConfigError(f"sigreg.scaling={self.scaling!r}: must be 'published' or 'batch_invariant'")


def draw_directions(
    dimension: int, num_projections: int, *, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Float[Tensor, "D M"]:
    """Draw unit vectors evenly from the sphere, as columns.

    Drawn on the CPU, so that a generator's state gives the same directions on every device and in every process.

    Args:
        dimension: D.
        num_projections: M.
        generator: Of the CPU; advanced.
        device: Where they go.
    """
    normal_DM = torch.randn(dimension, num_projections, generator=generator)
    return (normal_DM / normal_DM.norm(dim=0)).to(device)


def subspace_directions(
    dimension: int, config: SigRegConfig, *, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Float[Tensor, "D M"]:
    """Draw unit vectors as :func:`draw_directions` does, each from within one of the parts of the space.

    The parts are orthogonal and equal in size, but for the first ones where it does not come out even; directions go to
    them in turn.

    Args:
        dimension: D, at least the number of parts.
        config: Number and seed of the parts, and M.
        generator: Of the CPU; advanced.
        device: Where they go.

    Raises:
        ConfigError: There are more parts than dimensions.

    Reference:
        "Sub-JEPA" (arXiv 2605.09241): frozen random orthogonal subspaces, an Epps-Pulley test along random directions
        in each, the mean over all.
    """
    if config.num_subspaces == 1:
        return draw_directions(dimension, config.num_projections, generator=generator, device=device)
    if config.num_subspaces > dimension:
        raise ConfigError(
            f"sigreg.num_subspaces={config.num_subspaces}: must be <= latent_dim={dimension}; a part has a dimension "
            "or more"
        )
    parts = _random_basis(dimension, config.subspace_seed).tensor_split(config.num_subspaces, dim=1)
    columns = torch.arange(config.num_projections)
    directions_DM = torch.empty(dimension, config.num_projections)
    for place, part in enumerate(parts):
        mine = columns % config.num_subspaces == place
        directions_DM[:, mine] = part @ draw_directions(part.shape[1], int(mine.sum()), generator=generator)
    return directions_DM.to(device)


@cache
def _random_basis(dimension: int, seed: int) -> Float[Tensor, "D D"]:
    """Return a random orthonormal basis as columns."""
    return torch.linalg.qr(torch.randn(dimension, dimension, generator=keyed_generator(seed, "subspaces"))).Q


def sigreg(
    embeddings_TBD: Float[Tensor, "T B D"], config: SigRegConfig, *, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Return SIGReg of embeddings along fresh directions, in float32 whatever autocast says.

    Under data parallelism (an initialised process group) the means are over the batches of all processes. Every process
    gets the value of the whole batch; its gradient is scaled so that the *average* over processes, which is what
    ``DistributedDataParallel`` takes, is the gradient of one process that had the whole batch. All processes must pass
    generators in the same state and batches of one size.

    Args:
        embeddings_TBD: One batch for every step.
        config: How to measure.
        generator: Draws the directions; advanced.
    """
    with torch.autocast(embeddings_TBD.device.type, enabled=False):
        embeddings_TBD = embeddings_TBD.float()
        directions_DM = subspace_directions(
            embeddings_TBD.shape[-1], config, generator=generator, device=embeddings_TBD.device
        )
        return sigreg_statistic(embeddings_TBD @ directions_DM, config)


def sigreg_statistic(projections_TBM: Float[Tensor, "T B M"], config: SigRegConfig) -> Float[Tensor, ""]:
    """Return the mean of the statistic over steps and directions, fast; for processes see :func:`sigreg`.

    Args:
        projections_TBM: float32 or float64.
        config: How to measure.
    """
    return _Statistic.apply(projections_TBM, config)  # pyright: ignore[reportReturnType]


def eager_statistic(projections_TBM: Float[Tensor, "T B M"], config: SigRegConfig) -> Float[Tensor, ""]:
    """Return what :func:`sigreg_statistic` returns, of one process, straight from the formula."""
    knots_K, weights_K = quadrature(config, like=projections_TBM)
    angles_TBMK = projections_TBM.unsqueeze(-1) * knots_K
    real_TMK = angles_TBMK.cos().mean(dim=1) - torch.exp(-knots_K.square() / 2)
    imaginary_TMK = angles_TBMK.sin().mean(dim=1)
    distance_TM = ((real_TMK.square() + imaginary_TMK.square()) * weights_K).sum(dim=-1)
    return distance_TM.mean() * _multiplier(config, projections_TBM.shape[1])


def expected_statistic(config: SigRegConfig) -> float:
    r"""Return the mean of the published statistic over batches drawn from N(0, 1): sum of w_k (1 - exp(-t_k^2)).

    It does not depend on the batch size, so statistic / expectation is a measure of Gaussianity: 1 for a Gaussian.
    """
    knots_K, weights_K = quadrature(config, like=torch.zeros((), dtype=torch.float64))
    return float((weights_K * (1 - torch.exp(-knots_K.square()))).sum())


def quadrature(config: SigRegConfig, *, like: Tensor) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Return knots and weights, the weights with the Gaussian factor, in the dtype and on the device of ``like``."""
    knots_K = torch.linspace(0, config.max_t, config.num_knots, dtype=torch.float64)
    weights_K = torch.full_like(knots_K, 2 * config.max_t / (config.num_knots - 1))
    weights_K[[0, -1]] /= 2
    weights_K *= torch.exp(-knots_K.square() / 2)
    return knots_K.to(like), weights_K.to(like)


def _multiplier(config: SigRegConfig, batch_size: int) -> int:
    return batch_size if config.scaling == "published" else REFERENCE_BATCH


class _Statistic(torch.autograd.Function):
    """The statistic by rotation: cos and sin of k a from those of (k - 1) a and a, four products each."""

    @staticmethod
    def forward(ctx: Any, projections_TBM: Tensor, config: SigRegConfig) -> Tensor:
        num_steps, batch_size, num_directions = projections_TBM.shape
        knots_K, weights_K = quadrature(config, like=projections_TBM)
        spacing = config.max_t / (config.num_knots - 1)
        sums_2KTM = projections_TBM.new_empty(2, config.num_knots, num_steps, num_directions)
        sums_2KTM[0, 0], sums_2KTM[1, 0] = batch_size, 0
        rotations: list[tuple[Tensor, Tensor]] = []
        for columns in _blocks(projections_TBM):
            angles = projections_TBM[:, :, columns] * spacing
            step_cos, step_sin = angles.cos(), angles.sin()
            rotations.append((step_cos, step_sin))
            cos, sin = step_cos, step_sin
            for knot in range(1, config.num_knots):
                if knot > 1:
                    cos, sin = _rotated(cos, sin, step_cos, step_sin)
                torch.sum(cos, dim=1, out=sums_2KTM[0, knot, :, columns])
                torch.sum(sin, dim=1, out=sums_2KTM[1, knot, :, columns])
        num_processes = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums_2KTM)
            num_processes = dist.get_world_size()
        total = batch_size * num_processes
        means_2KTM = sums_2KTM.div_(total)
        means_2KTM[0] -= torch.exp(-knots_K.square() / 2)[:, None, None]
        multiplier = _multiplier(config, total)
        distance_TM = torch.einsum("k,cktm->tm", weights_K, means_2KTM.square())
        # d(statistic) / d(h_b) = scale * sum_k w_k t_k [imaginary_k cos(t_k h_b) - real_k sin(t_k h_b)]; a process's
        # part is multiplied by their number, because the average over processes divides by it.
        scale = 2 * multiplier * num_processes / (total * num_steps * num_directions)
        ctx.coefficients = means_2KTM * (scale * weights_K * knots_K)[:, None, None]
        ctx.rotations = rotations
        ctx.shape = projections_TBM.shape
        return distance_TM.mean() * multiplier

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        real_KTM, imaginary_KTM = ctx.coefficients
        gradient_TBM = real_KTM.new_empty(ctx.shape)
        last = real_KTM.shape[0] - 1
        for columns, (step_cos, step_sin) in zip(_blocks(gradient_TBM), ctx.rotations, strict=True):
            # Horner's rule for sum_k (imaginary_k + i real_k) u^k with u = exp(i a): its real part is the gradient.
            real = imaginary_KTM[last, :, None, columns] * torch.ones_like(step_cos)
            imaginary = real_KTM[last, :, None, columns] * torch.ones_like(step_cos)
            for knot in range(last - 1, -1, -1):
                real, imaginary = _rotated(real, imaginary, step_cos, step_sin)
                real += imaginary_KTM[knot, :, None, columns]
                imaginary += real_KTM[knot, :, None, columns]
            torch.mul(real, grad_outputs[0], out=gradient_TBM[:, :, columns])
        return gradient_TBM, None


def _blocks(values_TBM: Tensor) -> list[slice]:
    num_steps, batch_size, num_directions = values_TBM.shape
    width = max(1, _BLOCK_NUMBERS // (num_steps * batch_size))
    return [slice(start, min(start + width, num_directions)) for start in range(0, num_directions, width)]


def _rotated(cos: Tensor, sin: Tensor, step_cos: Tensor, step_sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return (cos + i sin) (step_cos + i step_sin)."""
    real = torch.mul(cos, step_cos).addcmul_(sin, step_sin, value=-1)
    imaginary = torch.mul(sin, step_cos).addcmul_(cos, step_sin)
    return real, imaginary
