"""The training loss of a decoder by fused operations, where they can be had; the decoder itself is the slow twin."""

from typing import Final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from forerun.models.decoder import Decoder, DecoderAttention, DecoderLayer, DecoderMlp
from forerun.nn.training_ops import LayerWeights, decoder_layer, linear_cross_entropy, rms_norm

_MOST_TOKENS: Final = 512
"""Above, the attention that keeps its probabilities is slower than PyTorch's."""


def can_fuse(decoder: Decoder, *, num_tokens: int) -> bool:
    """Return whether :func:`fused_next_token_loss` can stand in for the decoder's own operations.

    They are for float32 on a CPU with one thread: with more, PyTorch's operations share work that these do not.

    Args:
        decoder: With weights in place.
        num_tokens: Length of its sequences.
    """
    config = decoder.config
    weight = decoder.embed_tokens.weight
    return (
        type(decoder) is Decoder  # another one may have its parameters in parts until it is called
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.get_num_threads() == 1
        and num_tokens <= _MOST_TOKENS
        and config.num_heads == config.num_kv_heads
        and not (config.attention_bias or config.qk_norm)
        and config.sliding_window is None
        and all(_layer(layer).dropout == 0 for layer in decoder.layers)
    )


def fused_next_token_loss(decoder: Decoder, ids_BT: Int64[Tensor, "batch tokens"]) -> Float32[Tensor, ""]:
    """Return the mean loss of every id of a row but the first, in nats.

    Args:
        decoder: One that :func:`can_fuse`.
        ids_BT: Rows of token ids.
    """
    eps = decoder.config.norm_eps
    x_BTE = decoder.embed_tokens(ids_BT[:, :-1])
    positions_T = torch.arange(ids_BT.shape[1] - 1)
    angles_TD = positions_T.unsqueeze(-1).float() * decoder.get_buffer("rope_freqs")
    cos_TD, sin_TD = angles_TD.cos(), angles_TD.sin()

    def run(x_BTE: Tensor, layer: DecoderLayer) -> Tensor:
        return decoder_layer(x_BTE, _weights(layer), cos_TD=cos_TD, sin_TD=sin_TD, norm_eps=eps)

    for module in decoder.layers:
        layer = _layer(module)
        x_BTE = checkpoint(run, x_BTE, layer, use_reentrant=False) if decoder.recomputes else run(x_BTE, layer)
    hidden_BTE = rms_norm(x_BTE, decoder.norm.weight, eps=eps)
    return linear_cross_entropy(hidden_BTE.flatten(0, 1), decoder.lm_head.weight, ids_BT[:, 1:].flatten())


def _layer(layer: torch.nn.Module) -> DecoderLayer:
    assert isinstance(layer, DecoderLayer)
    return layer


def _weights(layer: DecoderLayer) -> LayerWeights:
    attention: DecoderAttention = layer.self_attn
    mlp: DecoderMlp = layer.mlp
    return LayerWeights(
        input_norm=layer.input_layernorm.weight,
        query=attention.q_proj.weight,
        key=attention.k_proj.weight,
        value=attention.v_proj.weight,
        output=attention.o_proj.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
        gate=mlp.gate_proj.weight,
        up=mlp.up_proj.weight,
        down=mlp.down_proj.weight,
    )
