"""What a random projection is: a fixed linear map, known from a source of random words alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, UInt64
from torch import Tensor, nn

from forerun.core.errors import ConfigError

Words = Callable[[int, int], UInt64[np.ndarray, " count"]]
"""Gives ``count`` random 64-bit words of a numbered stream: ``words(stream, count)``, the same at every call."""

_WORD_BITS: Final = 64


class Projection(nn.Module, ABC):
    r"""A map :math:`w \mapsto P w`, each row of P with squares that sum to 1, exactly or in expectation.

    Coefficients of unit size thus move every value by about 1, whatever their number. The map is kept in float64 and
    follows ``.float()`` and ``.double()`` like any module.

    Args:
        num_values: Rows of P.
        dim: Coefficients, at most as many.

    Raises:
        ConfigError: A number is out of range.
    """

    def __init__(self, *, num_values: int, dim: int) -> None:
        super().__init__()
        if not 1 <= dim <= num_values:
            raise ConfigError(f"dim={dim}: must be 1 to {num_values}, the number of values")
        self.num_values, self.dim = num_values, dim

    @abstractmethod
    def forward(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " values"]:
        """Return P w."""

    def column(self, index: int) -> Float[Tensor, " values"]:
        """Return the direction of one coefficient."""
        unit = next(self.buffers()).new_zeros(self.dim)
        unit[index] = 1
        return self(unit)


def random_signs(words: Words, stream: int, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
    """Return signs, -1 or 1, in float64: each row takes whole words, their bits from the least on."""
    drawn = words(stream, rows * -(-columns // _WORD_BITS)).astype("<u8")
    bits = np.unpackbits(drawn.view(np.uint8).reshape(rows, -1), axis=1, bitorder="little")[:, :columns]
    return torch.from_numpy(2.0 * bits - 1.0)


def random_order(words: Words, stream: int, count: int) -> Tensor:
    """Return a permutation of ``range(count)``, int64."""
    return torch.from_numpy(np.argsort(words(stream, count), kind="stable"))
