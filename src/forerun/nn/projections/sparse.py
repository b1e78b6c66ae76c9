"""Sparse random signs: a coefficient moves a few values only."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.nn.projections.base import Projection, Words


class SparseProjection(Projection):
    r"""P with :math:`k = \lceil \sqrt{D} \rceil` signs in each of its d columns, of size :math:`\sqrt{D / (k d)}`.

    Places are drawn with replacement; signs at one place add up. A row has :math:`k d / D` entries on average, and may
    have none: that value stays where it starts.

    Args:
        num_values: Rows D of P.
        dim: Columns d.
        words: Source; stream 0 is used. The lowest bit of a word is the sign, the others modulo D are the place.

    Reference:
        Li, Hastie, Church, "Very sparse random projections", KDD 2006, for the density; there entries are drawn one by
        one, here their number in a column is fixed, so that a column costs no more than its entries.
    """

    def __init__(self, *, num_values: int, dim: int, words: Words) -> None:
        super().__init__(num_values=num_values, dim=dim)
        per_column = math.isqrt(num_values - 1) + 1
        drawn = words(0, dim * per_column)
        places = ((drawn >> np.uint64(1)) % np.uint64(num_values)).astype(np.int64)
        signs = 2.0 * (drawn & np.uint64(1)).astype(np.float64) - 1.0
        size = math.sqrt(num_values / (per_column * dim))
        self.register_buffer("places", torch.from_numpy(places))
        self.register_buffer("entries", torch.from_numpy(signs * size).view(dim, per_column))

    def forward(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " values"]:
        """Return P w."""
        moves = (coefficients[:, None] * self.get_buffer("entries")).flatten()
        return moves.new_zeros(self.num_values).index_add(0, self.get_buffer("places"), moves)

    def column(self, index: int) -> Float[Tensor, " values"]:
        """Return the direction of one coefficient."""
        entries = self.get_buffer("entries")
        places = self.get_buffer("places").view_as(entries)[index]
        return entries.new_zeros(self.num_values).index_add(0, places, entries[index])
