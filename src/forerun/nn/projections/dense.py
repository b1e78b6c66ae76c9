"""Dense random signs: every coefficient moves every value."""

import math
from typing import Final

from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.nn.projections.base import Projection, Words, random_signs

_MOST_ENTRIES: Final = 1 << 27


class DenseProjection(Projection):
    r"""P of independent fair signs over :math:`\sqrt{d}`, kept as a matrix.

    Args:
        num_values: Rows of P.
        dim: Coefficients d.
        words: Source; stream 0 is used.

    Raises:
        ConfigError: The matrix would be too large to keep.
    """

    def __init__(self, *, num_values: int, dim: int, words: Words) -> None:
        super().__init__(num_values=num_values, dim=dim)
        if num_values * dim > _MOST_ENTRIES:
            raise ConfigError(
                f"dim={dim}: a dense projection on {num_values} values has {num_values * dim} entries, at most "
                f"{_MOST_ENTRIES} are kept; take a sparse, fastfood or kronecker one"
            )
        self.register_buffer("matrix", random_signs(words, 0, num_values, dim) / math.sqrt(dim))

    def forward(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " values"]:
        """Return P w."""
        return self.get_buffer("matrix") @ coefficients
