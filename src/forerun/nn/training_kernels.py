"""Fused steps of a decoder's training pass and their gradients, compiled by Numba, for float32 on one core.

What lies between two matrix products is one pass over memory here, where it is five to ten in separate operations.
Arrays are C-contiguous float32 unless said otherwise; what is written is named ``out``, or ``d`` with the name of what
it is the gradient of.

Numba's cache looks at the file of a kernel only: after a change to :func:`forerun.nn.row_kernels.exp`, touch this file.
Shape legend: M rows (tokens), E hidden, I intermediate, V vocabulary, B batch, T positions, H heads, D head_dim.
"""

import math
from typing import Final

import numpy as np
from numba import njit

from forerun.nn.row_kernels import FAST_OPTIONS, exp

_ONE: Final = np.float32(1.0)
_LEAST: Final = np.float32(-1e30)
_LANES: Final = 32
"""Loops over a causal row run to a multiple of it, so that no scalar remainder is left."""


@njit(**FAST_OPTIONS)
def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, out: np.ndarray, out_gain: np.ndarray) -> None:
    """Normalise the rows of ``x`` ``[M, E]``; ``out_gain`` ``[M]`` keeps one over the root mean square of each."""
    width = x.shape[1]
    for m in range(x.shape[0]):
        square = np.float32(0.0)
        for j in range(width):
            square += x[m, j] * x[m, j]
        gain = _ONE / np.float32(math.sqrt(square / np.float32(width) + np.float32(eps)))
        out_gain[m] = gain
        for j in range(width):
            out[m, j] = x[m, j] * gain * weight[j]


@njit(**FAST_OPTIONS)
def rms_norm_gradient(
    d_out: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    gain: np.ndarray,
    d_around: np.ndarray,
    dx: np.ndarray,
    d_weight: np.ndarray,
) -> None:
    """Gradient of :func:`rms_norm`, plus ``d_around``, what reaches ``x`` around it; ``d_weight`` is added to."""
    width = x.shape[1]
    for m in range(x.shape[0]):
        g = gain[m]
        along = np.float32(0.0)
        for j in range(width):
            along += d_out[m, j] * weight[j] * x[m, j]
        along *= g * g / np.float32(width)
        for j in range(width):
            dx[m, j] = d_around[m, j] + g * (d_out[m, j] * weight[j] - x[m, j] * along)
            d_weight[j] += d_out[m, j] * x[m, j] * g


@njit(**FAST_OPTIONS)
def swiglu(gate_up: np.ndarray, out: np.ndarray) -> None:
    """Write ``silu(gate) * up`` ``[M, I]`` of ``[M, 2 I]``, gate first."""
    width = out.shape[1]
    for m in range(out.shape[0]):
        gate, up, row = gate_up[m, :width], gate_up[m, width:], out[m]
        for j in range(width):
            row[j] = gate[j] / (_ONE + exp(-gate[j])) * up[j]


@njit(**FAST_OPTIONS)
def swiglu_gradient(d_out: np.ndarray, gate_up: np.ndarray, d_gate_up: np.ndarray) -> None:
    """Gradient of :func:`swiglu`."""
    width = d_out.shape[1]
    for m in range(d_out.shape[0]):
        gate, up, row = gate_up[m, :width], gate_up[m, width:], d_out[m]
        d_gate, d_up = d_gate_up[m, :width], d_gate_up[m, width:]
        for j in range(width):
            x = gate[j]
            sigmoid = _ONE / (_ONE + exp(-x))
            d_up[j] = row[j] * x * sigmoid
            d_gate[j] = row[j] * up[j] * sigmoid * (_ONE + x * (_ONE - sigmoid))


@njit(**FAST_OPTIONS)
def split_heads(qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray, out: np.ndarray) -> None:
    """Rotate queries and keys by their positions, divide queries by sqrt(D), and put the head before the position.

    Args:
        qkv: ``[B, T, 3, H, D]``: queries, keys, values. The two halves of a head form the pairs.
        cos: ``[T, D / 2]``.
        sin: As ``cos``.
        out: ``[3, B, H, T, D]``.
    """
    half = qkv.shape[4] // 2
    scale = _ONE / np.float32(math.sqrt(np.float32(2 * half)))
    for b in range(qkv.shape[0]):
        for t in range(qkv.shape[1]):
            for h in range(qkv.shape[3]):
                q, k, v = qkv[b, t, 0, h], qkv[b, t, 1, h], qkv[b, t, 2, h]
                q_out, k_out, v_out = out[0, b, h, t], out[1, b, h, t], out[2, b, h, t]
                for d in range(half):
                    c, s = cos[t, d], sin[t, d]
                    q_out[d] = (q[d] * c - q[d + half] * s) * scale
                    q_out[d + half] = (q[d + half] * c + q[d] * s) * scale
                    k_out[d] = k[d] * c - k[d + half] * s
                    k_out[d + half] = k[d + half] * c + k[d] * s
                for d in range(2 * half):
                    v_out[d] = v[d]


@njit(**FAST_OPTIONS)
def split_heads_gradient(
    dq: np.ndarray, dk: np.ndarray, dv: np.ndarray, cos: np.ndarray, sin: np.ndarray, d_qkv: np.ndarray
) -> None:
    """Gradient of :func:`split_heads`, from ``[B, H, T, D]`` each: back by the same angle."""
    half = d_qkv.shape[4] // 2
    scale = _ONE / np.float32(math.sqrt(np.float32(2 * half)))
    for b in range(d_qkv.shape[0]):
        for t in range(d_qkv.shape[1]):
            for h in range(d_qkv.shape[3]):
                q, k, v = dq[b, h, t], dk[b, h, t], dv[b, h, t]
                q_out, k_out, v_out = d_qkv[b, t, 0, h], d_qkv[b, t, 1, h], d_qkv[b, t, 2, h]
                for d in range(half):
                    c, s = cos[t, d], sin[t, d]
                    q_out[d] = (q[d] * c + q[d + half] * s) * scale
                    q_out[d + half] = (q[d + half] * c - q[d] * s) * scale
                    k_out[d] = k[d] * c + k[d + half] * s
                    k_out[d + half] = k[d + half] * c - k[d] * s
                for d in range(2 * half):
                    v_out[d] = v[d]


@njit(**FAST_OPTIONS)
def causal_softmax(scores: np.ndarray) -> None:
    """Turn scores ``[B H, T, T]`` into probabilities in place: of position t over the positions up to t, 0 beyond."""
    width = scores.shape[2]
    for n in range(scores.shape[0]):
        for t in range(width):
            stop = min(width, (t // _LANES + 1) * _LANES)
            peak = _LEAST
            for j in range(stop):
                peak = max(peak, scores[n, t, j] if j <= t else _LEAST)
            total = np.float32(0.0)
            for j in range(stop):
                weight = exp(scores[n, t, j] - peak) if j <= t else np.float32(0.0)
                scores[n, t, j] = weight
                total += weight
            inverse = _ONE / total
            for j in range(stop):
                scores[n, t, j] *= inverse
            for j in range(stop, width):
                scores[n, t, j] = np.float32(0.0)


@njit(**FAST_OPTIONS)
def causal_softmax_gradient(d_probs: np.ndarray, probs: np.ndarray) -> None:
    """Turn the gradient of the probabilities of :func:`causal_softmax` into that of the scores, in place."""
    width = probs.shape[2]
    for n in range(probs.shape[0]):
        for t in range(width):
            stop = min(width, (t // _LANES + 1) * _LANES)
            mean = np.float32(0.0)
            for j in range(stop):
                mean += d_probs[n, t, j] * probs[n, t, j]
            for j in range(stop):
                d_probs[n, t, j] = probs[n, t, j] * (d_probs[n, t, j] - mean)
            for j in range(stop, width):
                d_probs[n, t, j] = np.float32(0.0)


@njit(**FAST_OPTIONS)
def cross_entropy_gradient(logits: np.ndarray, targets: np.ndarray, scale: float) -> float:
    """Return the sum of the losses of rows ``[M, V]`` in nats, and turn the rows into its gradient times ``scale``.

    Args:
        logits: Overwritten.
        targets: int64 ``[M]``.
        scale: Of the gradient, not of what is returned.
    """
    loss, factor = 0.0, np.float32(scale)
    for m in range(logits.shape[0]):
        row = logits[m]
        peak = row[0]
        for j in range(row.shape[0]):
            peak = max(peak, row[j])
        target = row[targets[m]] - peak
        total = np.float32(0.0)
        for j in range(row.shape[0]):
            weight = exp(row[j] - peak)
            row[j] = weight
            total += weight
        loss += math.log(total) - target
        gain = factor / total
        for j in range(row.shape[0]):
            row[j] *= gain
        row[targets[m]] -= factor
    return loss
