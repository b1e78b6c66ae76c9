"""Fastfood: a dense Gaussian-like projection in D log D time and D memory, by Hadamard transforms."""

import math
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from forerun.nn.projections.base import Projection, Words, random_order, random_signs

_CELL: Final = 2.0**-53


def hadamard_transform(values: Float[Tensor, " length"]) -> Float[Tensor, " length"]:
    """Return the product with the Hadamard matrix in Sylvester's order, not normalised.

    Args:
        values: A power of two of them.
    """
    half = 1
    while half < len(values):
        pairs = values.view(-1, 2, half)
        values = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], dim=1).flatten()
        half *= 2
    return values


def _gaussians(words: Words, stream: int, count: int) -> Float[Tensor, " count"]:
    """Return standard normal numbers in float64, by Box and Muller's transform."""
    first, second = (((words(stream + i, count) >> np.uint64(11)) + 0.5) * _CELL for i in (0, 1))
    return torch.from_numpy(np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second))


class FastfoodProjection(Projection):
    r"""P w are the first D of :math:`H G \Pi H B w` over :math:`\sqrt{L d}`, with w padded by zeros to length L.

    L is the least power of two that is at least D; B are signs, :math:`\Pi` a permutation, G Gaussian numbers on a
    diagonal, H Hadamard's matrix.

    Args:
        num_values: Rows D of P.
        dim: Coefficients d.
        words: Source; stream 0 gives B, 1 the permutation, 2 and 3 the Gaussian numbers.

    Reference:
        Le, Sarlós, Smola, "Fastfood: approximating kernel expansions in loglinear time", ICML 2013, without its last
        diagonal S, which evens out the norms of rows.
    """

    def __init__(self, *, num_values: int, dim: int, words: Words) -> None:
        super().__init__(num_values=num_values, dim=dim)
        self._length = 1 << (num_values - 1).bit_length()
        self.register_buffer("signs", random_signs(words, 0, 1, self._length)[0])
        self.register_buffer("order", random_order(words, 1, self._length))
        scale = math.sqrt(self._length * dim)
        self.register_buffer("gaussians", _gaussians(words, 2, self._length) / scale)

    def forward(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " values"]:
        """Return P w."""
        mixed = hadamard_transform(pad(coefficients, (0, self._length - self.dim)) * self.get_buffer("signs"))
        return hadamard_transform(mixed[self.get_buffer("order")] * self.get_buffer("gaussians"))[: self.num_values]
