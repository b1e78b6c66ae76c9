"""Networks that guess a clean sequence from a noisy one: a residual MLP for speed, a transformer as in D-MPC.

A sequence has F steps of C numbers. What is known besides comes in two kinds: a context, one vector for the whole
sequence (the history), and an alignment, one vector for each step (the actions, for a dynamics). Both are embedded once
and then serve every denoising step.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from forerun.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserConfig:
    """Shape of a denoiser.

    Attributes:
        kind: ``mlp``: the sequence as one vector through residual blocks. ``transformer``: a token for each step.
        width: Of the residual stream.
        depth: Blocks.
        num_heads: Of the transformer.
        head_dim: Of the transformer; the paper's heads are wider together than the stream.
        inner_width: Of the blocks' hidden layer; ``None``: twice the width (MLP), eight times (transformer).
        num_frequencies: Bases of the Fourier embedding of a step's place (transformer).
    """

    kind: Literal["mlp", "transformer"] = "mlp"
    width: int = 256
    depth: int = 3
    num_heads: int = 8
    head_dim: int = 32
    inner_width: int | None = None
    num_frequencies: int = 16

    def __post_init__(self) -> None:
        for name in ("width", "depth", "num_heads", "head_dim", "num_frequencies"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")


class Denoiser(nn.Module, ABC):
    """What both kinds share: the signature, and the embedding of the noise level.

    Args:
        width: Of the residual stream.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    @abstractmethod
    def embed_known(
        self, context: Float[Tensor, "rows context"], aligned: Float[Tensor, "rows horizon aligned"] | None
    ) -> Tensor:
        """Return an embedding of what is known, to be given to :meth:`forward` at every denoising step."""

    @abstractmethod
    def forward(
        self, noisy: Float[Tensor, "rows horizon channels"], level: Float[Tensor, " levels"], known: Tensor
    ) -> Float[Tensor, "rows horizon channels"]:
        """Return the network's guess; of what, the prediction type says.

        Args:
            noisy: The sequences.
            level: Noise level of each row in [0, 1], or one for all.
            known: From :meth:`embed_known`.
        """

    def embed_level(self, level: Float[Tensor, " levels"]) -> Float[Tensor, "levels width"]:
        """Return sinusoids of the noise level, through two layers."""
        half = self.width // 2
        frequencies = torch.exp(torch.linspace(0.0, math.log(1000.0), half, device=level.device))
        angles = level[:, None] * frequencies
        waves = functional.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, self.width % 2))
        return self.level(waves)


class ResidualMlp(Denoiser):
    """The whole sequence as one vector through residual blocks.

    Args:
        config: Shape.
        horizon: F.
        channels: C.
        context_dim: Numbers of the context.
        aligned_dim: Numbers of the alignment for each step; 0 for none.
    """

    def __init__(
        self, config: DenoiserConfig, *, horizon: int, channels: int, context_dim: int, aligned_dim: int
    ) -> None:
        super().__init__(config.width)
        self._sequence = (horizon, channels)
        inner = config.inner_width or 2 * config.width
        self.known = nn.Linear(context_dim + horizon * aligned_dim, config.width)
        self.inside = nn.Linear(horizon * channels, config.width, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(config.width), nn.Linear(config.width, inner), nn.SiLU(), nn.Linear(inner, config.width)
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.outside = nn.Linear(config.width, horizon * channels)

    def embed_known(
        self, context: Float[Tensor, "rows context"], aligned: Float[Tensor, "rows horizon aligned"] | None
    ) -> Float[Tensor, "rows width"]:
        """As :meth:`Denoiser.embed_known`."""
        return self.known(context if aligned is None else torch.cat([context, aligned.flatten(1)], dim=-1))

    def forward(
        self, noisy: Float[Tensor, "rows horizon channels"], level: Float[Tensor, " levels"], known: Tensor
    ) -> Float[Tensor, "rows horizon channels"]:
        """As :meth:`Denoiser.forward`."""
        hidden = self.inside(noisy.flatten(1)) + known + self.embed_level(level)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.outside(self.norm(hidden)).unflatten(1, self._sequence)


class Transformer(Denoiser):
    """A token for the context, one for each step, and as many pre-norm blocks as configured.

    The noise level is added to every token; places have Fourier features, as D-MPC's.

    Args:
        config: Shape.
        horizon: F.
        channels: C.
        context_dim: Numbers of the context.
        aligned_dim: Numbers of the alignment for each step; 0 for none.

    Reference:
        Zhou et al. 2024 (arXiv 2410.05364), appendix E.1, as far as it is known: 5 layers, 8 heads, tokens of 256.
    """

    places: Tensor

    def __init__(
        self, config: DenoiserConfig, *, horizon: int, channels: int, context_dim: int, aligned_dim: int
    ) -> None:
        super().__init__(config.width)
        self.context = nn.Linear(context_dim, config.width)
        self.aligned = nn.Linear(aligned_dim, config.width) if aligned_dim else None
        self.inside = nn.Linear(channels, config.width)
        self.place = nn.Linear(2 * config.num_frequencies, config.width)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.outside = nn.Linear(config.width, channels)
        self.register_buffer("places", fourier_features(horizon + 1, config.num_frequencies), persistent=False)

    def embed_known(
        self, context: Float[Tensor, "rows context"], aligned: Float[Tensor, "rows horizon aligned"] | None
    ) -> Float[Tensor, "rows tokens width"]:
        """As :meth:`Denoiser.embed_known`."""
        first = self.context(context)[:, None]
        steps = first.new_zeros(len(first), len(self.places) - 1, self.width)
        if self.aligned is not None:
            assert aligned is not None
            steps = self.aligned(aligned)
        return torch.cat([first, steps], dim=1) + self.place(self.places)

    def forward(
        self, noisy: Float[Tensor, "rows horizon channels"], level: Float[Tensor, " levels"], known: Tensor
    ) -> Float[Tensor, "rows horizon channels"]:
        """As :meth:`Denoiser.forward`."""
        hidden = known + self.embed_level(level)[:, None] + functional.pad(self.inside(noisy), (0, 0, 1, 0))
        for block in self.blocks:
            hidden = block(hidden)
        return self.outside(self.norm(hidden[:, 1:]))


class TransformerBlock(nn.Module):
    """Attention over all tokens and an MLP, both on a normed copy of the stream.

    Args:
        config: Shape.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width, inside = config.width, config.num_heads * config.head_dim
        inner = config.inner_width or 8 * width
        self._heads = (config.num_heads, config.head_dim)
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * inside)
        self.joined = nn.Linear(inside, width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, hidden: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows tokens width"]:
        """Return the stream after the block."""
        parts = self.projections(self.norm(hidden)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, self._heads).transpose(1, 2) for part in parts)
        attended = functional.scaled_dot_product_attention(query, key, value)
        hidden = hidden + self.joined(attended.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.norm_mlp(hidden))


def fourier_features(num_places: int, num_frequencies: int) -> Float[Tensor, "places features"]:
    """Return sines and cosines of each place in [0, 1], with frequencies of 1, 2, 3, ... half turns."""
    places = torch.linspace(0.0, 1.0, num_places)[:, None]
    angles = math.pi * places * torch.arange(1, num_frequencies + 1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def build_denoiser(
    config: DenoiserConfig, *, horizon: int, channels: int, context_dim: int, aligned_dim: int = 0
) -> Denoiser:
    """Return a fresh denoiser of the configured kind.

    Args:
        config: Shape.
        horizon: F.
        channels: C.
        context_dim: Numbers of the context.
        aligned_dim: Numbers of the alignment for each step; 0 for none.
    """
    kind = ResidualMlp if config.kind == "mlp" else Transformer
    return kind(config, horizon=horizon, channels=channels, context_dim=context_dim, aligned_dim=aligned_dim)
