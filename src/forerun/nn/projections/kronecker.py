"""A Kronecker product of two small sign matrices: a dense projection in the memory of their factors."""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from forerun.nn.projections.base import Projection, Words, random_order, random_signs


class KroneckerProjection(Projection):
    r"""P w are D entries, in random order, of :math:`(A \otimes B) w = \mathrm{vec}(A W B^\top)` over :math:`\sqrt{d}`.

    A and B are of fair signs, with :math:`\lceil \sqrt D \rceil` and :math:`\lceil D / \lceil \sqrt D \rceil \rceil`
    rows and likewise many columns for d; W holds w row by row, padded with zeros.

    Args:
        num_values: Rows D of P.
        dim: Coefficients d.
        words: Source; stream 0 gives A, 1 gives B, 2 the order.

    Reference:
        Lotfi et al., "PAC-Bayes compression bounds so tight that they can explain generalization", NeurIPS 2022. There
        the rest of D over a square has a dense factor of its own and the factors may be orthogonalised; here the
        product is larger than D and cut.
    """

    def __init__(self, *, num_values: int, dim: int, words: Words) -> None:
        super().__init__(num_values=num_values, dim=dim)
        rows, columns = (math.isqrt(count - 1) + 1 for count in (num_values, dim))
        other_rows, self._other_columns = -(-num_values // rows), -(-dim // columns)
        self._padding = columns * self._other_columns - dim
        self.register_buffer("left", random_signs(words, 0, rows, columns))
        self.register_buffer("right", random_signs(words, 1, other_rows, self._other_columns) / math.sqrt(dim))
        self.register_buffer("order", random_order(words, 2, rows * other_rows)[:num_values])

    def forward(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " values"]:
        """Return P w."""
        weights = pad(coefficients, (0, self._padding)).view(-1, self._other_columns)
        product = self.get_buffer("left") @ weights @ self.get_buffer("right").T
        return product.flatten()[self.get_buffer("order")]
