"""From pixels to one vector for each frame: convolutions, places of what they find, or a vision transformer."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class KeypointConfig:
    """Shape of an encoder that says where things are.

    Attributes:
        image_size: Pixels of a side; a multiple of 4.
        num_channels: After the first of three convolutions; the others have twice as many.
        num_keypoints: Maps, each of which becomes one place.
        width: Of the vector.
    """

    image_size: int = 64
    num_channels: int = 16
    num_keypoints: int = 32
    width: int = 128

    def __post_init__(self) -> None:
        """Check that two halvings come out even.

        Raises:
            ConfigError: They don't, or there is no keypoint.
        """
        if self.image_size < 8 or self.image_size % 4:
            raise ConfigError(f"keypoints.image_size={self.image_size}: must be a multiple of 4, 8 or more")
        if self.num_keypoints < 1:
            raise ConfigError(f"keypoints.num_keypoints={self.num_keypoints}: must be >= 1")


class Keypoints(nn.Module):
    """Convolutions, and the mean place of each of their last maps under a softmax over the map.

    A linear map of all cells must learn every place of a thing apart; a mean place moves with the thing from the first
    step on, by less than a cell.

    Args:
        config: Shape.

    Reference:
        Finn et al. 2016, "Deep spatial autoencoders for visuomotor learning" (arXiv 1509.06113), section IV.
    """

    def __init__(self, config: KeypointConfig) -> None:
        super().__init__()
        self.width = config.width
        first, then, num_maps = config.num_channels, 2 * config.num_channels, config.num_keypoints
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 4, stride=2, padding=1), nn.BatchNorm2d(first), nn.GELU(),
            nn.Conv2d(first, then, 4, stride=2, padding=1), nn.BatchNorm2d(then), nn.GELU(),
            nn.Conv2d(then, then, 3, padding=1), nn.BatchNorm2d(then), nn.GELU(),
            nn.Conv2d(then, num_maps, 1), nn.BatchNorm2d(num_maps),
        )  # fmt: skip
        self.head = nn.Sequential(nn.BatchNorm1d(2 * num_maps), nn.Linear(2 * num_maps, config.width))

    def forward(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C"]:
        """Return a vector for each image."""
        maps = self.layers(images)
        shares_BKHW = maps.flatten(2).softmax(dim=2).unflatten(2, maps.shape[2:])
        across, down = (
            torch.linspace(-1, 1, size, device=maps.device, dtype=maps.dtype) for size in (maps.shape[3], maps.shape[2])
        )
        places = [shares_BKHW.sum(dim=2) @ across, shares_BKHW.sum(dim=3) @ down]
        return self.head(torch.cat(places, dim=1))


EncoderConfig = CnnConfig | KeypointConfig | VitConfig
ENCODERS: Final = {"cnn": CnnConfig, "keypoints": KeypointConfig, "vit": VitConfig}
"""Kinds of encoders by the name that a checkpoint has for them."""


def build_encoder(config: EncoderConfig) -> Cnn | Keypoints | Vit:
    """Return an encoder with fresh weights; its ``width`` is that of its vectors."""
    match config:
        case CnnConfig():
            return Cnn(config)
        case KeypointConfig():
            return Keypoints(config)
        case VitConfig():
            return Vit(config)


def encoder_kind(config: EncoderConfig) -> str:
    """Return the name in :data:`ENCODERS` of an encoder's kind."""
    return next(name for name, kind in ENCODERS.items() if isinstance(config, kind))


def normalised(pixels: UInt8[Tensor, "*batch height width 3"]) -> Float[Tensor, "*batch 3 height width"]:
    """Return images with each channel centred and scaled as is usual for photographs (ImageNet's moments)."""
    mean = torch.tensor(_CHANNEL_MEAN, device=pixels.device) * 255
    std = torch.tensor(_CHANNEL_STD, device=pixels.device) * 255
    return ((pixels - mean) / std).movedim(-1, -3)
