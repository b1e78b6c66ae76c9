"""A decoder's layer, its norm and its loss with their gradients written out, for float32 on one core.

Between two matrix products there is one pass over memory (:mod:`forerun.nn.training_kernels`), residual sums are part
of the products, and autograd sees one operation where there were forty. Results are those of the plain operations of
:mod:`forerun.models.decoder` up to the rounding of float32 sums.
Shape legend: M rows (tokens), E hidden, I intermediate, V vocabulary, B batch, T positions, H heads, D head_dim,
N = B H.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from forerun.nn import training_kernels as kernels

_ROWS_AT_ONCE: Final = 256
"""Rows of logits that exist at a time; with a vocabulary of a thousand they stay in the cache of a core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWeights:
    """The parameters of one layer, as :class:`torch.nn.Linear` and :class:`torch.nn.RMSNorm` keep them."""

    input_norm: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


def decoder_layer(
    x_BTE: Float32[Tensor, "batch tokens hidden"],
    weights: LayerWeights,
    *,
    cos_TD: Float32[Tensor, "tokens half"],
    sin_TD: Float32[Tensor, "tokens half"],
    norm_eps: float,
) -> Float32[Tensor, "batch tokens hidden"]:
    """Return the residual stream after a layer: causal attention with as many key as query heads, and gated MLP.

    The probabilities of attention are kept for the gradient: memory grows with the square of the tokens, which is fast
    for a few hundred.

    Args:
        x_BTE: The residual stream.
        weights: Of the layer.
        cos_TD: Of the angle of each rotary pair at each position; twice its width is a head's.
        sin_TD: As ``cos_TD``.
        norm_eps: Added to the mean square in both norms.
    """
    w = weights
    return _Layer.apply(  # pyright: ignore[reportReturnType] (apply is untyped)
        x_BTE, cos_TD, sin_TD, norm_eps,
        w.input_norm, w.query, w.key, w.value, w.output, w.mlp_norm, w.gate, w.up, w.down,
    )  # fmt: skip


def rms_norm(x: Float32[Tensor, "*rows width"], weight: Float32[Tensor, " width"], *, eps: float) -> Tensor:
    """Return the rows divided by their root mean square, times ``weight``.

    Args:
        x: Rows.
        weight: Gain of each column.
        eps: Added to the mean square.
    """
    return _RmsNorm.apply(x, weight, eps)  # pyright: ignore[reportReturnType]


def linear_cross_entropy(
    hidden_ME: Float32[Tensor, "rows hidden"],
    head_VE: Float32[Tensor, "vocab hidden"],
    targets_M: Int64[Tensor, " rows"],
) -> Float32[Tensor, ""]:
    """Return the mean loss of the targets under ``softmax(hidden @ head.T)``, in nats.

    The logits of a few rows exist at a time: loss and gradients are made of them together.

    Args:
        hidden_ME: Last hidden states.
        head_VE: Output head.
        targets_M: Each below the vocabulary's size.
    """
    return _LinearCrossEntropy.apply(hidden_ME, head_VE, targets_M)  # pyright: ignore[reportReturnType]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, eps: float, *weights: Tensor) -> Tensor:
        norm1, query, key, value, output, norm2, gate, up, down = weights
        batch, tokens, _ = x.shape
        dim = 2 * cos.shape[1]
        heads = query.shape[0] // dim
        x_ME = _rows(x)
        qkv_weight, gate_up_weight = torch.cat((query, key, value)), torch.cat((gate, up))
        normed1_ME, gain1_M = _normalise(x_ME, norm1, eps)
        qkv = torch.mm(normed1_ME, qkv_weight.T).view(batch, tokens, 3, heads, dim)
        split = x.new_empty((3, batch, heads, tokens, dim))
        kernels.split_heads(_array(qkv), _array(cos), _array(sin), _array(split))
        q_NTD, k_NTD, v_NTD = split.view(3, batch * heads, tokens, dim)
        probs_NTT = torch.bmm(q_NTD, k_NTD.transpose(1, 2))
        kernels.causal_softmax(_array(probs_NTT))
        mixed_ME = _heads_last(torch.bmm(probs_NTT, v_NTD), batch)
        middle_ME = torch.addmm(x_ME, mixed_ME, output.T)
        normed2_ME, gain2_M = _normalise(middle_ME, norm2, eps)
        gate_up_MI = torch.mm(normed2_ME, gate_up_weight.T)
        active_MI = x.new_empty((len(x_ME), len(gate)))
        kernels.swiglu(_array(gate_up_MI), _array(active_MI))
        ctx.save_for_backward(
            x_ME, cos, sin, qkv_weight, gate_up_weight, norm1, output, norm2, down, normed1_ME, gain1_M, split,
            probs_NTT, mixed_ME, middle_ME, normed2_ME, gain2_M, gate_up_MI, active_MI,
        )  # fmt: skip
        return torch.addmm(middle_ME, active_MI, down.T).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (
            x_ME, cos, sin, qkv_weight, gate_up_weight, norm1, output, norm2, down, normed1_ME, gain1_M, split,
            probs_NTT, mixed_ME, middle_ME, normed2_ME, gain2_M, gate_up_MI, active_MI,
        ) = ctx.saved_tensors  # fmt: skip
        _, batch, heads, tokens, dim = split.shape
        q_NTD, k_NTD, v_NTD = split.view(3, batch * heads, tokens, dim)
        d_out_ME = _rows(grads[0])

        d_active_MI, d_gate_up_MI = torch.mm(d_out_ME, down), torch.empty_like(gate_up_MI)
        kernels.swiglu_gradient(_array(d_active_MI), _array(gate_up_MI), _array(d_gate_up_MI))
        d_normed2_ME = torch.mm(d_gate_up_MI, gate_up_weight)
        d_middle_ME, d_norm2 = _normalise_gradient(d_normed2_ME, middle_ME, norm2, gain2_M, around=d_out_ME)

        d_mixed_NTD = _heads_first(torch.mm(d_middle_ME, output), batch, heads)
        d_scores_NTT = torch.bmm(d_mixed_NTD, v_NTD.transpose(1, 2))
        kernels.causal_softmax_gradient(_array(d_scores_NTT), _array(probs_NTT))
        d_split = [
            product.view(batch, heads, tokens, dim)
            for product in (
                torch.bmm(d_scores_NTT, k_NTD),
                torch.bmm(d_scores_NTT.transpose(1, 2), q_NTD),
                torch.bmm(probs_NTT.transpose(1, 2), d_mixed_NTD),
            )
        ]
        d_qkv = x_ME.new_empty((batch, tokens, 3, heads, dim))
        kernels.split_heads_gradient(*map(_array, (*d_split, cos, sin, d_qkv)))
        d_qkv_ME = d_qkv.view(len(x_ME), -1)
        dx_ME, d_norm1 = _normalise_gradient(torch.mm(d_qkv_ME, qkv_weight), x_ME, norm1, gain1_M, around=d_middle_ME)
        return (
            dx_ME.view(grads[0].shape), None, None, None,
            d_norm1, *torch.mm(d_qkv_ME.T, normed1_ME).chunk(3), torch.mm(d_middle_ME.T, mixed_ME),
            d_norm2, *torch.mm(d_gate_up_MI.T, normed2_ME).chunk(2), torch.mm(d_out_ME.T, active_MI),
        )  # fmt: skip


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = _rows(x)
        out, gain = _normalise(rows, weight, eps)
        ctx.save_for_backward(rows, weight, gain)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weight, gain = ctx.saved_tensors
        dx, d_weight = _normalise_gradient(_rows(grads[0]), rows, weight, gain, around=torch.zeros_like(rows))
        return dx.view(grads[0].shape), d_weight, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        d_hidden, d_head, loss = torch.empty_like(hidden), torch.zeros_like(head), 0.0
        for start in range(0, len(hidden), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            logits = torch.mm(hidden[part], head.T)
            loss += kernels.cross_entropy_gradient(_array(logits), _array(targets[part]), 1 / len(hidden))
            torch.mm(logits, head, out=d_hidden[part])
            d_head.addmm_(logits.T, hidden[part])
        ctx.save_for_backward(d_hidden, d_head)
        return hidden.new_tensor(loss / len(hidden))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * grads[0], d_head * grads[0], None


def _normalise(x_ME: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out_ME, gain_M = torch.empty_like(x_ME), x_ME.new_empty(len(x_ME))
    kernels.rms_norm(_array(x_ME), _array(weight), eps, _array(out_ME), _array(gain_M))
    return out_ME, gain_M


def _normalise_gradient(
    d_out_ME: Tensor, x_ME: Tensor, weight: Tensor, gain_M: Tensor, *, around: Tensor
) -> tuple[Tensor, Tensor]:
    dx_ME, d_weight = torch.empty_like(x_ME), torch.zeros_like(weight)
    kernels.rms_norm_gradient(*map(_array, (d_out_ME, x_ME, weight, gain_M, around, dx_ME, d_weight)))
    return dx_ME, d_weight


def _heads_last(x_NTD: Tensor, batch: int) -> Tensor:
    tokens, dim = x_NTD.shape[1:]
    return x_NTD.view(batch, -1, tokens, dim).transpose(1, 2).reshape(batch * tokens, -1)


def _heads_first(x_ME: Tensor, batch: int, heads: int) -> Tensor:
    dim = x_ME.shape[1] // heads
    return x_ME.view(batch, -1, heads, dim).transpose(1, 2).reshape(batch * heads, -1, dim)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _array(x: Tensor) -> Any:
    return x.detach().numpy()
