"""The vision transformer: patches and a class token to one vector for each image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.errors import ConfigError
from forerun.nn.self_attention import SelfAttention, feed_forward


@dataclass(frozen=True, kw_only=True, slots=True)
class VitConfig:
    """Shape of a vision transformer; the defaults are ViT-tiny at 224 pixels.

    Attributes:
        image_size: Pixels of a side.
        patch_size: Pixels of a patch's side; divides the image's.
        width: Of the tokens.
        num_layers: Blocks.
        num_heads: Heads; divide the width.
        mlp_width: Hidden width of the feed-forward layers.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 192
    num_layers: int = 12
    num_heads: int = 3
    mlp_width: int = 768

    def __post_init__(self) -> None:
        """Check that patches tile the image and heads the width.

        Raises:
            ConfigError: They don't.
        """
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ConfigError(
                f"vit.patch_size={self.patch_size}: must divide image_size={self.image_size}; take another patch"
            )
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ConfigError(f"vit.num_heads={self.num_heads}: must divide width={self.width}")


class Vit(nn.Module):
    """Pre-norm blocks over patches and a class token, learned positions, and a last norm; no dropout.

    Args:
        config: Shape.

    Reference:
        Dosovitskiy et al. 2020 (arXiv 2010.11929). Weights start as there: truncated normal, 0.02.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.width = config.width
        self.to_patches = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        num_patches = (config.image_size // config.patch_size) ** 2
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.positions = nn.Parameter(torch.empty(1, 1 + num_patches, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C"]:
        """Return the last state of the class token.

        Args:
            images: Normalised, of the size that the configuration names.
        """
        return self.norm(self._states(images)[:, 0])

    def patch_states(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B patches C"]:
        """Return the last states of the patches, row by row of the image.

        Args:
            images: As in :meth:`forward`.
        """
        return self.norm(self._states(images)[:, 1:])

    def _states(self, images: Tensor) -> Tensor:
        patches = self.to_patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class _Block(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.attention = SelfAttention(
            config.width,
            num_heads=config.num_heads,
            head_dim=config.width // config.num_heads,
            is_causal=False,
        )
        self.mlp_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.mlp = feed_forward(config.width, config.mlp_width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))
