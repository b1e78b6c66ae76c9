"""What lies between the matrix products of an AdaLN block, one pass over each row, compiled by Numba.

In PyTorch each of these is four to ten operations, and each of them reads and writes all rows once more. A row is
computed by the same float32 operations whatever the other rows are.

Shape legend: M rows, C width of a token, T tokens of a window, Q of them ask, H heads, D head_dim, P = 3 H D.
"""

import math

import numpy as np
from numba import njit

from forerun.nn.row_kernels import FAST_OPTIONS, exp

PLAIN_EPS = np.float32(1e-6)
"""Of the norm before the modulation."""
AFFINE_EPS = np.float32(1e-5)
"""Of the norm after it."""


@njit(**FAST_OPTIONS)
def modulated_norm(
    tokens_MC: np.ndarray,
    modulation: np.ndarray,
    shift_at: int,
    scale_at: int,
    weight_C: np.ndarray,
    bias_C: np.ndarray,
    out_MC: np.ndarray,
) -> None:
    """Write norm(norm(token) * (1 + scale) + shift) * weight + bias, both norms over a row.

    Args:
        tokens_MC: float32 rows.
        modulation: float32 rows that hold each row's shift and scale, among other things.
        shift_at: Column where the shift begins.
        scale_at: Column where the scale begins.
        weight_C: Of the second norm.
        bias_C: Likewise.
        out_MC: Written; may be no other argument.
    """
    num_rows, width = tokens_MC.shape
    for m in range(num_rows):
        _norm_row(
            tokens_MC[m],
            modulation[m, shift_at : shift_at + width],
            modulation[m, scale_at : scale_at + width],
            weight_C,
            bias_C,
            out_MC[m],
        )


@njit(**FAST_OPTIONS)
def gated_norm(
    tokens_MC: np.ndarray,
    added_MC: np.ndarray,
    gates: np.ndarray,
    gate_at: int,
    modulation: np.ndarray,
    shift_at: int,
    scale_at: int,
    weight_C: np.ndarray,
    bias_C: np.ndarray,
    out_MC: np.ndarray,
) -> None:
    """Add gate * added to the tokens, in place, and write their :func:`modulated_norm`.

    Args:
        tokens_MC: float32 rows, changed.
        added_MC: What a layer gives.
        gates: float32 rows that hold each row's gate.
        gate_at: Column where the gate begins.
        modulation: As for :func:`modulated_norm`; may be ``gates``.
        shift_at: As for :func:`modulated_norm`.
        scale_at: Likewise.
        weight_C: Likewise.
        bias_C: Likewise.
        out_MC: Written; may be ``added_MC``.
    """
    num_rows, width = tokens_MC.shape
    for m in range(num_rows):
        row, added = tokens_MC[m], added_MC[m]
        gate = gates[m, gate_at : gate_at + width]
        for j in range(width):
            row[j] += gate[j] * added[j]
        _norm_row(
            row,
            modulation[m, shift_at : shift_at + width],
            modulation[m, scale_at : scale_at + width],
            weight_C,
            bias_C,
            out_MC[m],
        )


@njit(**FAST_OPTIONS)
def gated_sum(tokens_MC: np.ndarray, added_MC: np.ndarray, gates: np.ndarray, gate_at: int) -> None:
    """Add gate * added to the tokens, in place; arguments as for :func:`gated_norm`."""
    num_rows, width = tokens_MC.shape
    for m in range(num_rows):
        row, added = tokens_MC[m], added_MC[m]
        gate = gates[m, gate_at : gate_at + width]
        for j in range(width):
            row[j] += gate[j] * added[j]


@njit(inline="always", **FAST_OPTIONS)
def _norm_row(
    row: np.ndarray, shift: np.ndarray, scale: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray
) -> None:
    width = row.shape[0]
    inverse = np.float32(1.0) / np.float32(width)
    total = np.float32(0.0)
    for j in range(width):
        total += row[j]
    mean = total * inverse
    squares = np.float32(0.0)
    for j in range(width):
        squares += (row[j] - mean) * (row[j] - mean)
    factor = np.float32(1.0) / np.float32(math.sqrt(squares * inverse + PLAIN_EPS))
    total = np.float32(0.0)
    for j in range(width):
        out[j] = (row[j] - mean) * factor * (np.float32(1.0) + scale[j]) + shift[j]
        total += out[j]
    mean = total * inverse
    squares = np.float32(0.0)
    for j in range(width):
        squares += (out[j] - mean) * (out[j] - mean)
    factor = np.float32(1.0) / np.float32(math.sqrt(squares * inverse + AFFINE_EPS))
    for j in range(width):
        out[j] = (out[j] - mean) * factor * weight[j] + bias[j]


@njit(**FAST_OPTIONS)
def window_attention(qkv_TMP: np.ndarray, num_heads: int, head_dim: int, out_QMC: np.ndarray) -> None:
    """Attend from the last tokens of short windows to all tokens up to each, causally.

    Args:
        qkv_TMP: float32 [T, M, 3 * H * D]: queries, keys and values of each token; only the last Q need queries.
        num_heads: H.
        head_dim: D.
        out_QMC: [Q, M, H * D], written.
    """
    num_tokens, num_rows = qkv_TMP.shape[0], qkv_TMP.shape[1]
    num_queries = out_QMC.shape[0]
    width = num_heads * head_dim
    scale = np.float32(1.0 / math.sqrt(head_dim))
    weights = np.empty(num_tokens, np.float32)
    for q in range(num_queries):
        place = num_tokens - num_queries + q
        for m in range(num_rows):
            for h in range(num_heads):
                start = h * head_dim
                query = qkv_TMP[place, m, start : start + head_dim]
                top = np.float32(-1e30)
                for t in range(place + 1):
                    key = qkv_TMP[t, m, width + start : width + start + head_dim]
                    dot = np.float32(0.0)
                    for d in range(head_dim):
                        dot += query[d] * key[d]
                    weights[t] = dot * scale
                    top = max(top, weights[t])
                total = np.float32(0.0)
                for t in range(place + 1):
                    weights[t] = exp(weights[t] - top)
                    total += weights[t]
                result = out_QMC[q, m, start : start + head_dim]
                for d in range(head_dim):
                    result[d] = np.float32(0.0)
                for t in range(place + 1):
                    share = weights[t] / total
                    value = qkv_TMP[t, m, 2 * width + start : 2 * width + start + head_dim]
                    for d in range(head_dim):
                        result[d] += share * value[d]
