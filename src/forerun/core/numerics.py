"""Exponentials of a logits row and sums of weights, to the same bits in any order and on any machine.

Where few digits are enough, exponentials are rounded down to whole units, whose sums are exact. Where not, a weight in
[0, 1] is split in two whole numbers, of units of 2**-42 and of 2**-84, and each kind is summed by itself.
"""

import math
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64, Int64
from llvmlite import ir  # pyright: ignore[reportMissingTypeStubs]
from numba import njit, types
from numba.extending import intrinsic

UNITS: Final = 2**40
"""Units of the largest score of a row. The row may have 2**22 scores before a sum can overflow."""
LOG2_E: Final = np.float32(1 / math.log(2))
LN2_HIGH: Final = np.float32(0.693145751953125)
"""ln 2 cut to 17 bits, so that its product with a small whole number is exact; the rest is :data:`LN2_LOW`."""
LN2_LOW: Final = np.float32(math.log(2) - 0.693145751953125)
LOWEST: Final = np.float32(-87.0)
"""Scores so far below the largest, or further, are worth no unit."""
SERIES: Final = tuple(np.float32(1 / math.factorial(power)) for power in (5, 4, 3, 2, 1, 0))
"""Coefficients after the first, 1/6!, of the exponential series on half of ln 2 to both sides, in Horner's order."""
FIRST_COEFFICIENT: Final = np.float32(1 / 720)

PART_UNITS: Final = 2.0**42
"""Of a weight of 1 in the first of its two parts; a sum may have 2**20 weights before it can overflow."""

_UNITS_FLOAT: Final = np.float32(UNITS)
_C5, _C4, _C3, _C2, _C1, _C0 = SERIES
_OPTIONS: Final[dict[str, Any]] = {"cache": True, "nogil": True, "error_model": "numpy"}


@intrinsic
def _float32_of(typingctx: Any, bits: Any) -> Any:
    """Reinterpret an int32 as a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


# No fastmath: a contraction or another order would give other bits than :mod:`forerun.nn.truncation`.
@njit(inline="always", **_OPTIONS)
def _exp(score: Any, largest: Any) -> Any:
    x = max(score - largest, LOWEST)
    whole = np.floor(x * LOG2_E + np.float32(0.5))
    r = (x - whole * LN2_HIGH) - whole * LN2_LOW
    series = FIRST_COEFFICIENT
    series = series * r + _C5
    series = series * r + _C4
    series = series * r + _C3
    series = series * r + _C2
    series = series * r + _C1
    series = series * r + _C0
    bits = (np.int32(whole) + np.int32(127)) << np.int32(23)
    power = _float32_of(bits)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)
    return series * power


@njit(inline="always", **_OPTIONS)
def _units(score: Any, largest: Any) -> Any:
    return np.int64(_exp(score, largest) * _UNITS_FLOAT)


@njit(**_OPTIONS)
def _fill_weights(scores: Any, largest: Any, out: Any) -> None:
    for i in range(out.shape[0]):
        weight = _exp(scores[i], largest)
        out[i] = np.float64(weight) if scores[i] - largest >= LOWEST else 0.0


@njit(**_OPTIONS)
def _sum_units(scores: Any, largest: Any) -> Any:
    total = np.int64(0)
    for i in range(scores.shape[0]):
        total += _units(scores[i], largest)
    return total


@njit(**_OPTIONS)
def _fill_units(scores: Any, largest: Any, out: Any) -> None:
    for i in range(scores.shape[0]):
        out[i] = _units(scores[i], largest)


def exp_units(scores: Float32[np.ndarray, " scores"], largest: float) -> Int64[np.ndarray, " scores"]:
    """Return ``exp(score - largest)`` of each score in units of ``2**-40``, rounded down; relative error below 1e-6.

    Args:
        scores: Numbers or minus infinity.
        largest: Their maximum, finite.
    """
    out = np.empty(scores.shape[0], np.int64)
    _fill_units(scores, np.float32(largest), out)
    return out


def sum_exp_units(scores: Float32[np.ndarray, " scores"], largest: float) -> int:
    """Return the sum of :func:`exp_units`."""
    return int(_sum_units(scores, np.float32(largest)))


def exp_weights(scores: Float32[np.ndarray, " scores"], largest: float) -> Float64[np.ndarray, " scores"]:
    """Return ``exp(score - largest)`` of each score, relative error below 2e-7; 0 below :data:`LOWEST`.

    Args:
        scores: Numbers or minus infinity.
        largest: Their maximum, finite.
    """
    out = np.empty(scores.shape[0])
    _fill_weights(scores, np.float32(largest), out)
    return out


def running_sums(weights: Float64[np.ndarray, " weights"]) -> Float64[np.ndarray, " weights"]:
    """Return the sums of the first weights, one after the other, in units of 2**-42; each rounded once or twice.

    Args:
        weights: In [0, 1]; what a weight has below 2**-84 does not count.
    """
    scaled = weights * PART_UNITS
    whole = scaled.astype(np.int64)
    rest = ((scaled - whole) * PART_UNITS).astype(np.int64)
    return whole.cumsum().astype(np.float64) + rest.cumsum().astype(np.float64) / PART_UNITS
