"""The magnitudes that a message may use, and what its symbols cost: shared by all that look for short messages."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forerun.bounds.message import num_magnitude_steps, step_to_magnitude

_LLOYD_ROUNDS = 20
_TAIL = 0.7


def nearest_step(magnitude: float) -> int:
    """Return the step of the message's logarithmic scale nearest to a positive magnitude."""
    return min(max(round(64 + 8 * math.log2(magnitude)), 0), num_magnitude_steps() - 1)


def fit_codebook(coefficients: Float[Tensor, " dim"], levels: int) -> list[int]:
    """Return steps of magnitudes near the coefficients, by Lloyd's iteration with zero as one more level.

    Args:
        coefficients: To be rounded.
        levels: 2 m + 1.

    Returns:
        m steps.
    """
    sizes, count = coefficients.abs(), (levels - 1) // 2
    shares = (torch.arange(count) + _TAIL) / (count + 0.5)
    centres = torch.quantile(sizes, shares).clamp(min=step_to_magnitude(0))
    for _ in range(_LLOYD_ROUNDS):
        classes = (sizes[:, None] - torch.cat([torch.zeros(1), centres])).abs().argmin(dim=1)
        for index in range(count):
            if (classes == index + 1).any():
                centres[index] = sizes[classes == index + 1].mean()
    return [nearest_step(max(float(centre), step_to_magnitude(0))) for centre in centres]


def signed_levels(steps: Sequence[int]) -> Float[Tensor, " levels"]:
    """Return the values of the symbols -m to m."""
    sizes = torch.tensor([step_to_magnitude(step) for step in steps])
    return torch.cat([-sizes.flip(0), torch.zeros(1), sizes])


def symbol_values(symbols: Int[Tensor, " dim"], steps: Sequence[int]) -> Float[Tensor, " dim"]:
    """Return the coefficients that symbols stand for."""
    return signed_levels(steps)[symbols + len(steps)]


def count_magnitudes(symbols: Sequence[int], num_magnitudes: int) -> list[int]:
    """Return how often zero and each magnitude occur."""
    counts = [0] * (num_magnitudes + 1)
    for symbol in symbols:
        counts[abs(symbol)] += 1
    return counts


def symbol_nats(magnitude_counts: Sequence[int]) -> float:
    """Return the information of the symbols, signs included, under the adaptive code: it depends on the counts only."""
    num_classes, total = len(magnitude_counts), sum(magnitude_counts)
    nats = math.lgamma(total + num_classes / 2) - math.lgamma(num_classes / 2)
    nats -= sum(math.lgamma(count + 0.5) - math.lgamma(0.5) for count in magnitude_counts)
    return nats + sum(magnitude_counts[1:]) * math.log(2)
