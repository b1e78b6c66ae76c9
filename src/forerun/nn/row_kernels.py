"""Fused row kernels for the CPU runner, compiled by Numba.

Each kernel does all the work between two matrix products for a few rows (tokens), so that a decoder layer costs eight
calls. Every row is computed by the same sequence of float32 operations whatever the other rows are; together with the
integer matrix products of :mod:`forerun.nn.int8_linear` this makes a pass *bitwise* independent of its width, which is
why greedy outputs are equal under every decoding method.

Quantised rows are unsigned bytes with zero point 128 and one scale per row: ``x ~ (byte - 128) * scale``. With two
levels a second block of M rows holds the remainders at 1/254 of the scale, which makes a 15-bit number of the two.
Arrays are assigned element by element: Numba compiles the message of a shape error into every assignment of a slice,
which takes seconds.
Shape legend: M rows, E hidden, I intermediate, H query heads, G key/value heads, D head_dim, group = H / G.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

FAST_OPTIONS: dict[str, Any] = {
    "cache": True,
    "fastmath": {"contract", "reassoc", "nsz", "arcp", "nnan"},
    "nogil": True,
    "error_model": "numpy",
}
ZERO_POINT = 128
MAX_LEVEL = 127.0
LOW_LEVELS = 254.0
MAGNITUDE = np.int32(0x7FFFFFFF)
"""All bits of a float32 but its sign."""
_LEAST_PEAK_BITS = np.float32(1e-12).view(np.int32)
_LOG2E = np.float32(1.4426950408889634)
_LN2 = np.float32(0.6931471805599453)


@intrinsic
def float_from_bits(typingctx: Any, bits: Any) -> Any:
    """Reinterpret an int32 as a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit(inline="always", **FAST_OPTIONS)
def exp(x: Any) -> Any:
    """Return e to the power of a float32, relative error below 3e-7 on [-87, 87]; vectorises, unlike libm's."""
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    n = np.float32(np.floor(x * _LOG2E + np.float32(0.5)))  # math.floor's is an int64, and half as fast
    r = x - n * _LN2
    p = np.float32(1.0 / 720.0)
    p = p * r + np.float32(1.0 / 120.0)
    p = p * r + np.float32(1.0 / 24.0)
    p = p * r + np.float32(1.0 / 6.0)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    bits = (np.int32(n) + np.int32(127)) << np.int32(23)
    return p * float_from_bits(bits)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)


@njit(inline="always", **FAST_OPTIONS)
def _quantize_row(row: np.ndarray, out_u8: np.ndarray, m: int, num_rows: int) -> Any:
    """Quantise into ``out_u8[m]`` and, with two levels, ``out_u8[num_rows + m]``; return the row's scale."""
    # The maximum of floats is a chain of dependent steps to LLVM; that of their bits, as integers, takes 16 at a time.
    bits = row.view(np.int32)
    peak_bits = _LEAST_PEAK_BITS
    for j in range(row.shape[0]):
        peak_bits = max(peak_bits, bits[j] & MAGNITUDE)
    peak = float_from_bits(peak_bits)  # pyright: ignore[reportCallIssue] (Numba passes the typing context)
    inverse = np.float32(MAX_LEVEL) / peak
    high = out_u8[m]
    for j in range(row.shape[0]):
        high[j] = np.uint8(np.int32(row[j] * inverse + np.float32(ZERO_POINT + 0.5)))
    if out_u8.shape[0] > num_rows:
        low = out_u8[num_rows + m]
        for j in range(row.shape[0]):
            rest = row[j] * inverse - (np.float32(high[j]) - np.float32(ZERO_POINT))
            low[j] = np.uint8(np.int32(rest * np.float32(LOW_LEVELS) + np.float32(ZERO_POINT + 0.5)))
    return peak / np.float32(MAX_LEVEL)


@njit(**FAST_OPTIONS)
def add_norm_quantize(
    x: np.ndarray,
    update: np.ndarray,
    weight: np.ndarray,
    eps: float,
    out_u8: np.ndarray,
    out_scale: np.ndarray,
) -> None:
    """Add a matrix product's rows to the residual stream in place, then RMS-normalise the sum and quantise it.

    Args:
        x: float32 ``[M, E]``, the residual stream; ``update`` is added to it.
        update: float32 ``[M, E]``.
        weight: float32 ``[E]``, gain of the norm.
        eps: Added to the mean square.
        out_u8: uint8 ``[levels M, E]``, written.
        out_scale: float32 ``[M]``, written.
    """
    width = x.shape[1]
    row = np.empty(width, np.float32)
    for m in range(x.shape[0]):
        square = np.float32(0.0)
        for j in range(width):
            total = x[m, j] + update[m, j]
            x[m, j] = total
            square += total * total
        gain = np.float32(1.0) / np.float32(math.sqrt(square / np.float32(width) + eps))
        for j in range(width):
            row[j] = x[m, j] * gain * weight[j]
        out_scale[m] = _quantize_row(row, out_u8, m, x.shape[0])


@njit(**FAST_OPTIONS)
def silu_mul_quantize(gate_up: np.ndarray, out_u8: np.ndarray, out_scale: np.ndarray) -> None:
    """Compute ``silu(gate) * up`` and quantise it.

    Args:
        gate_up: float32 ``[M, 2 I]``, gate first.
        out_u8: uint8 ``[levels M, I]``, written.
        out_scale: float32 ``[M]``, written.
    """
    width = gate_up.shape[1] // 2
    row = np.empty(width, np.float32)
    for m in range(gate_up.shape[0]):
        for j in range(width):
            gate = gate_up[m, j]
            row[j] = gate / (np.float32(1.0) + exp(-gate)) * gate_up[m, width + j]
        out_scale[m] = _quantize_row(row, out_u8, m, gate_up.shape[0])


@njit(inline="always", **FAST_OPTIONS)
def _rms_norm_head(head: np.ndarray, weight: np.ndarray, eps: float) -> None:
    square = np.float32(0.0)
    for d in range(head.shape[0]):
        square += head[d] * head[d]
    gain = np.float32(1.0) / np.float32(math.sqrt(square / np.float32(head.shape[0]) + eps))
    for d in range(head.shape[0]):
        head[d] = head[d] * gain * weight[d]


@njit(inline="always", **FAST_OPTIONS)
def _rotate_head(head: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> None:
    half = head.shape[0] // 2
    for d in range(half):
        first, second = head[d], head[half + d]
        head[d] = first * cos[d] - second * sin[d]
        head[half + d] = second * cos[d] + first * sin[d]


@njit(**FAST_OPTIONS)
def write_qkv(
    qkv: np.ndarray,
    bias: np.ndarray,
    q_norm: np.ndarray,
    k_norm: np.ndarray,
    eps: float,
    cos: np.ndarray,
    sin: np.ndarray,
    positions: np.ndarray,
    blocks: np.ndarray,
    lanes: np.ndarray,
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
) -> None:
    """Bias, normalise and rotate q, k, v; write keys and values to their slots.

    Args:
        qkv: float32 ``[M, (H + 2 G) D]``.
        bias: float32 ``[(H + 2 G) D]``, or empty for none.
        q_norm: float32 ``[D]`` gain of the q-norm, or empty for none.
        k_norm: As ``q_norm``, for the keys.
        eps: Of the q- and k-norm.
        cos: float32 ``[max_len, D / 2]``.
        sin: As ``cos``.
        positions: int64 ``[M]``, rotary positions.
        blocks: int64 ``[M]``, the block that each row writes to.
        lanes: int64 ``[M]``, and which of its slots.
        queries: float32 ``[G, M group, D]``, written, already multiplied by ``D ** -0.5``.
        keys: float32 ``[N, G, D, 32]``, written; layout of :mod:`forerun.nn.cache_blocks`.
        values: float32 ``[N, G, 32, W]``, written.
    """
    num_kv_heads, head_dim = keys.shape[1], keys.shape[2]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    group = num_heads // num_kv_heads
    softmax_scale = np.float32(1.0 / math.sqrt(head_dim))
    head = np.empty(head_dim, np.float32)
    for m in range(qkv.shape[0]):
        row, position, block, lane = qkv[m], positions[m], blocks[m], lanes[m]
        for h in range(num_heads + 2 * num_kv_heads):
            base = h * head_dim
            for d in range(head_dim):
                head[d] = row[base + d]
            if bias.shape[0] > 0:
                for d in range(head_dim):
                    head[d] += bias[base + d]
            if h < num_heads:
                if q_norm.shape[0] > 0:
                    _rms_norm_head(head, q_norm, eps)
                _rotate_head(head, cos[position], sin[position])
                query = queries[h // group, m * group + h % group]
                for d in range(head_dim):
                    query[d] = head[d] * softmax_scale
            elif h < num_heads + num_kv_heads:
                if k_norm.shape[0] > 0:
                    _rms_norm_head(head, k_norm, eps)
                _rotate_head(head, cos[position], sin[position])
                cached = keys[block, h - num_heads]
                for d in range(head_dim):
                    cached[d, lane] = head[d]
            else:
                kept = values[block, h - num_heads - num_kv_heads, lane]
                for d in range(head_dim):
                    kept[d] = head[d]


@njit(**FAST_OPTIONS)
def quantize_rows(x: np.ndarray, out_u8: np.ndarray, out_scale: np.ndarray) -> None:
    """Quantise rows as they are.

    Args:
        x: float32 ``[M, K]``.
        out_u8: uint8 ``[levels M, K]``, written.
        out_scale: float32 ``[M]``, written.
    """
    for m in range(x.shape[0]):
        out_scale[m] = _quantize_row(x[m], out_u8, m, x.shape[0])
