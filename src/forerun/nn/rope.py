"""Rotary position embedding, with the frequency scalings of the supported model families."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How a model stretches its rotary frequencies to reach a longer context.

    Attributes:
        kind: ``linear`` (every frequency divided by ``factor``), ``llama3`` (Llama 3.1: long wavelengths divided by
            ``factor``, short ones left alone, a blend between) or ``divisors`` (each frequency divided by its own
            number; GGUF files store Llama 3.1's scaling in this form).
        factor: Stretch of the low frequencies; ``linear`` and ``llama3``.
        low_freq_factor: Wavelengths above ``original_max_len / low_freq_factor`` are stretched in full; ``llama3``.
        high_freq_factor: Wavelengths below ``original_max_len / high_freq_factor`` are left alone; ``llama3``.
        original_max_len: Context, in tokens, the model was first trained with; ``llama3``.
        divisors: One divisor per rotary pair, ``head_dim / 2`` of them; ``divisors`` only.
    """

    kind: Literal["linear", "llama3", "divisors"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_len: int = 8192
    divisors: tuple[float, ...] = ()


def rope_frequencies(*, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    r"""Return the angular frequency of each rotary pair, in radians per position.

    .. math:: \omega_i = \theta^{-2i/d}

    Args:
        head_dim: Width d of one head.
        theta: Base of the geometric progression.
        scaling: Stretch of the frequencies; ``None`` leaves them as they are.

    Returns:
        float32 tensor ``[head_dim / 2]``.

    Reference:
        Su et al. 2021 (arXiv 2104.09864); Llama 3.1's scaling as published with its weights.
    """
    freqs = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return freqs
    if scaling.kind == "linear":
        return freqs / scaling.factor
    if scaling.kind == "divisors":
        return freqs / torch.tensor(scaling.divisors, dtype=torch.float32)
    wavelengths = 2 * math.pi / freqs
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = ((scaling.original_max_len / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return blend * freqs + (1 - blend) * freqs / scaling.factor


def rotations(frequencies: Tensor, positions_BT: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines ``[B, T, D / 2]`` of the rotary angles of positions.

    Args:
        frequencies: From :func:`rope_frequencies`.
        positions_BT: Whole numbers.
        dtype: Of the result.
    """
    angles = positions_BT.unsqueeze(-1).float() * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotate heads by their positions; the two halves of a head form the pairs (the Hugging Face layout).

    Args:
        x_THD: ``[..., T, heads, head_dim]``.
        cos_TD: ``[..., T, head_dim / 2]``.
        sin_TD: As ``cos_TD``.

    Returns:
        A new tensor shaped like ``x_THD``.
    """
    cos, sin = cos_TD.unsqueeze(-2), sin_TD.unsqueeze(-2)
    first, second = x_THD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
