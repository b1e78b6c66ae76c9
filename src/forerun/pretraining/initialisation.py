"""A decoder of a given shape with fresh weights."""

import math
from typing import Final

import torch
from torch import nn

from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.pretraining.config import ShapeConfig

_GAIN: Final = 0.7
_EMBEDDING_STD: Final = 0.1


def fresh_decoder(shape: ShapeConfig, *, vocab_size: int, max_len: int, seed: int) -> Decoder:
    r"""Build a decoder whose matrices are normal with standard deviation :math:`0.7 / \sqrt{\text{fan-in}}`.

    A fixed deviation, as large models use it, leaves models of this size too close to zero to learn in a few epochs.

    Args:
        shape: Its shape.
        vocab_size: Ids lie below it.
        max_len: Longest context in tokens.
        seed: Root of the weights; the global generator's state does not count.
    """
    decoder = Decoder(
        DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_heads,
            head_dim=shape.hidden_size // shape.num_heads,
            max_len=max_len,
            tie_embeddings=shape.tie_embeddings,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                is_embedding = name == "embed_tokens.weight"
                std = _EMBEDDING_STD if is_embedding else _GAIN / math.sqrt(parameter.shape[1])
                parameter.normal_(std=std, generator=generator)
    return decoder


def num_params(decoder: Decoder) -> dict[str, int]:
    """Return the number of parameters, ``total`` and ``without_embeddings`` (neither embedding nor head)."""
    counts = {name: parameter.numel() for name, parameter in decoder.named_parameters()}
    outer = sum(count for name, count in counts.items() if name in {"embed_tokens.weight", "lm_head.weight"})
    return {"total": sum(counts.values()), "without_embeddings": sum(counts.values()) - outer}
