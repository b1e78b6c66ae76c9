"""The noise that target and draft share, computed where the logits are: bit for bit that of :mod:`forerun.core.rng`.

The integers of a stream are the same everywhere; the logarithm is the same series in the same order, one float64
operation at a time, so a CPU and a GPU agree too, unless a compiler contracts a product and a sum.
"""

import math
from typing import Final

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from forerun.core.rng import CELL, MULTIPLIER_1, MULTIPLIER_2, SQRT_HALF_BITS, WEYL
from forerun.nn.token_laws import first_of_largest, is_broken, processed_scores
from forerun.nn.truncation import Truncation


def _signed(word: int) -> int:
    """Return the int64 with the bits of a uint64: torch has no products of uint64."""
    return word - (1 << 64) if word >> 63 else word


_WEYL: Final = _signed(WEYL)
_MULTIPLIER_1: Final = _signed(MULTIPLIER_1)
_MULTIPLIER_2: Final = _signed(MULTIPLIER_2)
_LN2: Final = math.log(2.0)
_ODD: Final = (19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0)


def gumbel_noise(keys: Int64[Tensor, "*rows"], ids: Int64[Tensor, " ids"]) -> Float32[Tensor, "*rows ids"]:
    """Return the Gumbel number of every id in every stream.

    Args:
        keys: :func:`forerun.core.rng.stream_key` of each row, its 64 bits as a signed integer.
        ids: Vocabulary ids.

    Returns:
        What :func:`forerun.core.rng.gumbel_row` gives.
    """
    word = keys.unsqueeze(-1) + (ids + 1) * _WEYL
    word = (word ^ _shifted(word, 30)) * _MULTIPLIER_1
    word = (word ^ _shifted(word, 27)) * _MULTIPLIER_2
    cells = _shifted(word ^ _shifted(word, 31), 12)
    return (-_log(-_log((cells.double() + 0.5) * CELL))).float()


def select_tokens(
    logits: Float[Tensor, "*rows columns"],
    temperatures: Float[Tensor, "*rows"],
    keys: Int64[Tensor, "*rows"],
    ids: Int64[Tensor, " columns"],
    *,
    has_noise: bool,
    truncation: Truncation | None = None,
) -> Int64[Tensor, "*rows"]:
    """Return the token of each row: the likeliest, or with a temperature the one that its noise picks.

    The choice is that of greedy decoding and of :func:`forerun.engine.speculative.coupling.coupled_token` on a law
    that nothing but temperature, top-k, top-p and min-p has shaped.

    Args:
        logits: Of each row.
        temperatures: 0 takes the likeliest token.
        keys: As for :func:`gumbel_noise`; of no account at temperature 0.
        ids: Vocabulary ids of the columns, ascending.
        has_noise: Whether any row has a temperature; without, no noise is computed.
        truncation: What each row with a temperature keeps; ``None``: everything.

    Returns:
        Vocabulary ids, the lowest on a tie; -1 where the largest logit is not finite.
    """
    scores = logits.float()
    if has_noise:
        is_greedy = (temperatures == 0).unsqueeze(-1)
        scores = processed_scores(logits, temperatures, truncation)
        scores = scores.double() + torch.where(is_greedy, 0.0, gumbel_noise(keys, ids)).double()
    return torch.where(is_broken(logits.float()), -1, ids[first_of_largest(scores)])


def _shifted(word: Tensor, places: int) -> Tensor:
    """Shift to the right, zeros from the left."""
    return (word >> places) & ((1 << (64 - places)) - 1)


def _log(x: Tensor) -> Tensor:
    """Return log(x) of a normal positive float64; see :mod:`forerun.core.rng`."""
    bits = x.view(torch.int64)
    exponent = (bits - SQRT_HALF_BITS) >> 52
    f = (bits - (exponent << 52)).view(torch.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    series = torch.full_like(z, 1.0 / 21.0)
    for odd in _ODD:
        series = series * z + 1.0 / odd
    return exponent.double() * _LN2 + (2.0 * s + 2.0 * s * z * series)
