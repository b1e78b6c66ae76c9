"""What lies between the matrix products of an AdaLN block, one pass over each row, compiled by Numba.

In PyTorch each of these is four to ten operations, and each of them reads and writes all rows once more. A row is
computed by the same float32 operations whatever the other rows are. Arrays are indexed whole: a slice of one, made for
every row, would take longer than the arithmetic of a narrow one.

Shape legend: M rows, C width of a token, K parts of a modulation, T tokens of a window, Q of them ask, H heads, D width
of a head.
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
    modulation_MKC: np.ndarray,
    shift_part: int,
    weight_C: np.ndarray,
    bias_C: np.ndarray,
    out_MC: np.ndarray,
) -> None:
    """Write norm(norm(token) * (1 + scale) + shift) * weight + bias, both norms over a row.

    Args:
        tokens_MC: float32 rows.
        modulation_MKC: For each row its shift, its scale after it, and other parts.
        shift_part: Which part is the shift.
        weight_C: Of the second norm.
        bias_C: Likewise.
        out_MC: Written; may be no other argument.
    """
    for m in range(tokens_MC.shape[0]):
        _norm_row(tokens_MC, modulation_MKC, shift_part, weight_C, bias_C, out_MC, m)


@njit(**FAST_OPTIONS)
def gated_norm(
    tokens_MC: np.ndarray,
    added_MC: np.ndarray,
    gates_MKC: np.ndarray,
    gate_part: int,
    modulation_MKC: np.ndarray,
    shift_part: int,
    weight_C: np.ndarray,
    bias_C: np.ndarray,
    out_MC: np.ndarray,
) -> None:
    """Add gate * added to the tokens, in place, and write their :func:`modulated_norm`.

    Args:
        tokens_MC: float32 rows, changed.
        added_MC: What a layer gives.
        gates_MKC: For each row its gate, among other parts.
        gate_part: Which part is the gate.
        modulation_MKC: As for :func:`modulated_norm`; may be ``gates_MKC``.
        shift_part: As for :func:`modulated_norm`.
        weight_C: Likewise.
        bias_C: Likewise.
        out_MC: Written; may be ``added_MC``.
    """
    for m in range(tokens_MC.shape[0]):
        _add_row(tokens_MC, added_MC, gates_MKC, gate_part, m)
        _norm_row(tokens_MC, modulation_MKC, shift_part, weight_C, bias_C, out_MC, m)


@njit(**FAST_OPTIONS)
def gated_sum(tokens_MC: np.ndarray, added_MC: np.ndarray, gates_MKC: np.ndarray, gate_part: int) -> None:
    """Add gate * added to the tokens, in place; arguments as for :func:`gated_norm`."""
    for m in range(tokens_MC.shape[0]):
        _add_row(tokens_MC, added_MC, gates_MKC, gate_part, m)


@njit(inline="always", **FAST_OPTIONS)
def _add_row(tokens_MC: np.ndarray, added_MC: np.ndarray, gates_MKC: np.ndarray, gate_part: int, m: int) -> None:
    for j in range(tokens_MC.shape[1]):
        tokens_MC[m, j] += gates_MKC[m, gate_part, j] * added_MC[m, j]


@njit(inline="always", **FAST_OPTIONS)
def _norm_row(
    tokens_MC: np.ndarray,
    modulation_MKC: np.ndarray,
    shift_part: int,
    weight_C: np.ndarray,
    bias_C: np.ndarray,
    out_MC: np.ndarray,
    m: int,
) -> None:
    width = tokens_MC.shape[1]
    inverse = np.float32(1.0) / np.float32(width)
    total = np.float32(0.0)
    for j in range(width):
        total += tokens_MC[m, j]
    mean = total * inverse
    squares = np.float32(0.0)
    for j in range(width):
        squares += (tokens_MC[m, j] - mean) * (tokens_MC[m, j] - mean)
    factor = np.float32(1.0) / np.float32(math.sqrt(squares * inverse + PLAIN_EPS))
    total = np.float32(0.0)
    for j in range(width):
        scale = np.float32(1.0) + modulation_MKC[m, shift_part + 1, j]
        value = (tokens_MC[m, j] - mean) * factor * scale + modulation_MKC[m, shift_part, j]
        out_MC[m, j] = value
        total += value
    mean = total * inverse
    squares = np.float32(0.0)
    for j in range(width):
        squares += (out_MC[m, j] - mean) * (out_MC[m, j] - mean)
    factor = np.float32(1.0) / np.float32(math.sqrt(squares * inverse + AFFINE_EPS))
    for j in range(width):
        out_MC[m, j] = (out_MC[m, j] - mean) * factor * weight_C[j] + bias_C[j]


@njit(**FAST_OPTIONS)
def window_attention(qkv_TM3HD: np.ndarray, out_QMHD: np.ndarray) -> None:
    """Attend from the last tokens of short windows to all tokens up to each, causally.

    Args:
        qkv_TM3HD: float32: query, key and value of each token; only the last Q need queries.
        out_QMHD: Written.
    """
    num_tokens, num_rows, _, num_heads, head_dim = qkv_TM3HD.shape
    num_queries = out_QMHD.shape[0]
    scale = np.float32(1.0 / math.sqrt(head_dim))
    weights = np.empty(num_tokens, np.float32)
    for q in range(num_queries):
        place = num_tokens - num_queries + q
        for m in range(num_rows):
            for h in range(num_heads):
                top = np.float32(-1e30)
                for t in range(place + 1):
                    dot = np.float32(0.0)
                    for d in range(head_dim):
                        dot += qkv_TM3HD[place, m, 0, h, d] * qkv_TM3HD[t, m, 1, h, d]
                    weights[t] = dot * scale
                    top = max(top, weights[t])
                total = np.float32(0.0)
                for t in range(place + 1):
                    weights[t] = exp(weights[t] - top)
                    total += weights[t]
                inverse = np.float32(1.0) / total
                share = weights[0] * inverse
                for d in range(head_dim):
                    out_QMHD[q, m, h, d] = share * qkv_TM3HD[0, m, 2, h, d]
                for t in range(1, place + 1):
                    share = weights[t] * inverse
                    for d in range(head_dim):
                        out_QMHD[q, m, h, d] += share * qkv_TM3HD[t, m, 2, h, d]
