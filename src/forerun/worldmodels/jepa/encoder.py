"""From pixels to one vector for each frame: a small convolutional network, or a vision transformer."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from forerun.core.errors import ConfigError
from forerun.models.vit import Vit, VitConfig

_CHANNEL_MEAN: Final = (0.485, 0.456, 0.406)
_CHANNEL_STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class CnnConfig:
    """Shape of a convolutional encoder.

    Attributes:
        image_size: Pixels of a side; a multiple of 8.
        num_channels: After the first of three convolutions, each of which halves the side and doubles the channels.
        width: Of the vector.
    """

    image_size: int = 32
    num_channels: int = 16
    width: int = 128

    def __post_init__(self) -> None:
        """Check that three halvings come out even.

        Raises:
            ConfigError: They don't.
        """
        if self.image_size < 8 or self.image_size % 8:
            raise ConfigError(f"cnn.image_size={self.image_size}: must be a multiple of 8; three convolutions halve it")


class Cnn(nn.Module):
    """Three convolutions of 4 x 4 with stride 2, each with batch norm and GELU, and a linear map of all that is left.

    Args:
        config: Shape.
    """

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.width = config.width
        widths = [3, *(config.num_channels * factor for factor in (1, 2, 4))]
        layers: list[nn.Module] = []
        for num_in, num_out in pairwise(widths):
            layers += [nn.Conv2d(num_in, num_out, 4, stride=2, padding=1), nn.BatchNorm2d(num_out), nn.GELU()]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(widths[-1] * (config.image_size // 8) ** 2, config.width)
        )

    def forward(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C"]:
        """Return a vector for each image."""
        return self.layers(images)


EncoderConfig = CnnConfig | VitConfig


def build_encoder(config: EncoderConfig) -> Cnn | Vit:
    """Return an encoder with fresh weights; its ``width`` is that of its vectors."""
    return Cnn(config) if isinstance(config, CnnConfig) else Vit(config)


def normalised(pixels: UInt8[Tensor, "*batch height width 3"]) -> Float[Tensor, "*batch 3 height width"]:
    """Return images with each channel centred and scaled as is usual for photographs (ImageNet's moments)."""
    mean = torch.tensor(_CHANNEL_MEAN, device=pixels.device) * 255
    std = torch.tensor(_CHANNEL_STD, device=pixels.device) * 255
    return ((pixels - mean) / std).movedim(-1, -3)
