"""The causal predictor: embeddings and actions of a few steps to the next embedding, and its roll-out.

Shape letters: B sequences, T steps, D latent dimension, C width, E width of the condition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.errors import ConfigError
from forerun.nn.self_attention import KeyValues, SelfAttention, feed_forward


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """Shape of the predictor; the defaults are the published ones.

    Attributes:
        width: Of the tokens; embeddings of another dimension are mapped to it and back.
        num_blocks: Blocks.
        num_heads: Heads.
        head_dim: Width of a head; heads x head_dim need not be ``width``.
        mlp_width: Hidden width of the feed-forward layers.
        history: Most steps it sees at once.
        dropout: Share dropped in attention and feed-forward layers.
    """

    width: int = 192
    num_blocks: int = 6
    num_heads: int = 16
    head_dim: int = 64
    mlp_width: int = 2048
    history: int = 3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range.
        """
        for name in ("width", "num_blocks", "num_heads", "head_dim", "mlp_width", "history"):
            if getattr(self, name) < 1:
                raise ConfigError(f"predictor.{name}={getattr(self, name)}: must be >= 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"predictor.dropout={self.dropout}: must lie in [0, 1)")


class AdaLnBlock(nn.Module):
    """Attention and feed-forward layer, each shifted, scaled and gated by the condition of its token.

    The gates start at 0, so that a fresh block is the identity (AdaLN-zero). As in the reference, a norm without
    weights comes before the modulation and another one, with weights, after it.

    Args:
        config: Shape.
        condition_width: E.

    Reference:
        Peebles and Xie 2022 (arXiv 2212.09748); Maes et al. 2026 (arXiv 2603.19312), appendix D.
    """

    def __init__(self, config: PredictorConfig, condition_width: int) -> None:
        super().__init__()
        width = config.width
        self.plain_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(
            width,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            is_causal=True,
            has_bias=False,
            dropout=config.dropout,
        )
        self.mlp = feed_forward(width, config.mlp_width, dropout=config.dropout)
        modulation = nn.Linear(condition_width, 6 * width)
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.to_modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(
        self, tokens_BTC: Float[Tensor, "B T C"], condition_BTE: Float[Tensor, "B T E"]
    ) -> Float[Tensor, "B T C"]:
        """Return the tokens after this block."""
        modulation = self.to_modulation(condition_BTE).chunk(6, dim=-1)
        attended = self.attention(self._attention_input(tokens_BTC, modulation))
        return self._after_attention(tokens_BTC, attended, modulation)

    def extend(
        self,
        tokens_BTC: Float[Tensor, "B T C"],
        condition_BTE: Float[Tensor, "B T E"],
        past: KeyValues | None,
    ) -> tuple[Float[Tensor, "B C"], KeyValues]:
        """Return the last token after this block, and the keys and values that the next call needs."""
        modulation = self.to_modulation(condition_BTE).chunk(6, dim=-1)
        attended, past = self.attention.extend(self._attention_input(tokens_BTC, modulation), past)
        last = tuple(part[:, -1] for part in modulation)
        return self._after_attention(tokens_BTC[:, -1], attended, last), past

    def _attention_input(self, tokens: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        shift, scale = modulation[:2]
        return self.attention_norm(self.plain_norm(tokens) * (1 + scale) + shift)

    def _after_attention(self, tokens: Tensor, attended: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        _, _, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        tokens = tokens + gate * attended
        return tokens + mlp_gate * self.mlp(self.mlp_norm(self.plain_norm(tokens) * (1 + mlp_scale) + mlp_shift))


class Predictor(nn.Module):
    """Predicts, at every step, the embedding that follows.

    Args:
        config: Shape.
        latent_dim: D.
        condition_width: E.
    """

    def __init__(self, config: PredictorConfig, *, latent_dim: int, condition_width: int) -> None:
        super().__init__()
        self.history = config.history
        self.positions = nn.Parameter(torch.randn(1, config.history, config.width))
        is_narrow = latent_dim != config.width
        self.to_tokens = nn.Linear(latent_dim, config.width) if is_narrow else nn.Identity()
        self.blocks = nn.ModuleList(AdaLnBlock(config, condition_width) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.to_latent = nn.Linear(config.width, latent_dim) if is_narrow else nn.Identity()

    def forward(
        self, latents_BTD: Float[Tensor, "B T D"], condition_BTE: Float[Tensor, "B T E"]
    ) -> Float[Tensor, "B T D"]:
        """Return a prediction at each of at most ``history`` steps, from that step and those before it."""
        tokens = self.to_tokens(latents_BTD) + self.positions[:, : latents_BTD.shape[1]]
        for block in self._stack:
            tokens = block(tokens, condition_BTE)
        return self.to_latent(self.norm(tokens))

    def extend(
        self, latent_BD: Float[Tensor, "B D"], condition_BE: Float[Tensor, "B E"], past: Sequence[KeyValues]
    ) -> tuple[Float[Tensor, "B D"], list[KeyValues]]:
        """Return the prediction after one more step, computing that step alone.

        Args:
            latent_BD: The step's embedding.
            condition_BE: Its condition.
            past: What the call for the step before returned; empty for the first step. Holds fewer than ``history``
                steps.
        """
        position = past[0].keys.shape[2] if past else 0
        tokens = self.to_tokens(latent_BD[:, None]) + self.positions[:, position : position + 1]
        seen: list[KeyValues] = []
        for place, block in enumerate(self._stack):
            last, kept = block.extend(tokens, condition_BE[:, None], past[place] if past else None)
            tokens = last[:, None]
            seen.append(kept)
        return self.to_latent(self.norm(tokens[:, 0])), seen

    def last(self, latents_BTD: Float[Tensor, "B T D"], condition_BTE: Float[Tensor, "B T E"]) -> Float[Tensor, "B D"]:
        """Return the prediction after the last step only; the last block computes no other token's output."""
        tokens = self.to_tokens(latents_BTD) + self.positions[:, : latents_BTD.shape[1]]
        for block in self._stack[:-1]:
            tokens = block(tokens, condition_BTE)
        last, _ = self._stack[-1].extend(tokens, condition_BTE, None)
        return self.to_latent(self.norm(last))

    @property
    def _stack(self) -> list[AdaLnBlock]:
        return cast(list[AdaLnBlock], list(self.blocks))
