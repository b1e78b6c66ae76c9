"""Fused passes over a logits row, compiled by Numba, for the time between two forward passes."""

import math
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from llvmlite import ir  # pyright: ignore[reportMissingTypeStubs]
from numba import njit, types
from numba.extending import intrinsic

_LOG2_E: Final = np.float32(1 / math.log(2))
_LN2_HIGH: Final = np.float32(0.693145751953125)
"""ln 2 cut to 17 bits, so that its product with a small whole number is exact; the rest is :data:`_LN2_LOW`."""
_LN2_LOW: Final = np.float32(math.log(2) - 0.693145751953125)
_LOWEST: Final = np.float32(-87.0)
_BLOCK: Final = 1024


@intrinsic
def _float32_of(typingctx: Any, bits: Any) -> Any:
    """Reinterpret an int32 as a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "nnan"})
def _sum_exp(scores: Any, largest: Any) -> Any:
    total = 0.0
    for start in range(0, scores.shape[0], _BLOCK):
        block = scores[start : start + _BLOCK]
        partial = np.float32(0.0)
        for i in range(block.shape[0]):
            x = max(block[i] - largest, _LOWEST)
            whole = np.floor(x * _LOG2_E + np.float32(0.5))
            r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
            series = np.float32(1 / 720)
            series = series * r + np.float32(1 / 120)
            series = series * r + np.float32(1 / 24)
            series = series * r + np.float32(1 / 6)
            series = series * r + np.float32(1 / 2)
            series = series * r + np.float32(1)
            series = series * r + np.float32(1)
            exponent = np.int32(whole)
            bits = (exponent + np.int32(127)) << np.int32(23)
            partial += series * _float32_of(bits)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)
        total += np.float64(partial)  # pyright: ignore[reportUnknownArgumentType]
    return total


def sum_exp(scores: Float32[np.ndarray, " scores"], largest: float) -> float:
    """Return the sum of ``exp(score - largest)``, relative error below 1e-5.

    Args:
        scores: Numbers or minus infinity.
        largest: Their maximum, finite.

    Returns:
        A number between 1 and the number of scores. What is below exp(-87) counts as exp(-87).
    """
    return float(_sum_exp(scores, np.float32(largest)))
