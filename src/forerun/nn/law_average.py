"""The average of several next-token laws, row by row: bitwise the same whatever rows are beside it."""

from typing import Any, Final, Literal, get_args

import numpy as np
from jaxtyping import Float32
from numba import njit

from forerun.nn.row_kernels import FAST_OPTIONS, exp

Average = Literal["probability", "logit"]
"""``probability``: the mixture of the laws. ``logit``: their normalised product (the geometric mean)."""
AVERAGES: Final[tuple[Average, ...]] = get_args(Average)

_LEAST = np.float32(1e-37)


def average_rows(logits: Float32[np.ndarray, "members rows vocab"], *, average: Average) -> np.ndarray:
    """Return logits of the averaged law.

    Args:
        logits: Of each member, finite.
        average: Which average.

    Returns:
        float32 ``[rows, vocab]``: for ``probability`` log-probabilities, where one below 1e-37 counts as that; for
        ``logit`` the mean of the logits.
    """
    out = np.empty(logits.shape[1:], np.float32)
    kernel = _mix if average == "probability" else _mean
    kernel(np.ascontiguousarray(logits, np.float32), out)
    return out


@njit(**FAST_OPTIONS)
def _mix(logits: Any, out: Any) -> None:
    num_members, num_rows, width = logits.shape
    weights = np.empty(width, np.float32)
    for row in range(num_rows):
        for v in range(width):
            out[row, v] = np.float32(0.0)
        for member in range(num_members):
            peak = logits[member, row, 0]
            for v in range(width):
                peak = max(peak, logits[member, row, v])
            total = np.float32(0.0)
            for v in range(width):
                weights[v] = exp(logits[member, row, v] - peak)
                total += weights[v]
            share = np.float32(1.0) / (total * np.float32(num_members))
            for v in range(width):
                out[row, v] += share * weights[v]
        for v in range(width):
            out[row, v] = np.log(max(out[row, v], _LEAST))


@njit(**FAST_OPTIONS)
def _mean(logits: Any, out: Any) -> None:
    num_members, num_rows, width = logits.shape
    share = np.float32(1.0) / np.float32(num_members)
    for row in range(num_rows):
        for v in range(width):
            out[row, v] = logits[0, row, v]
        for member in range(1, num_members):
            for v in range(width):
                out[row, v] += logits[member, row, v]
        for v in range(width):
            out[row, v] *= share
