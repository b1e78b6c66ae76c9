"""The prior: a grid of choices fixed before the data are seen, and how a choice unfolds into a network.

Only what the decoder needs is here, and all of it is paid for or fixed. Optimisers, learning rates, numbers of steps
and restarts are not: the bound holds for every message at once, so how one was found is free.
"""

import json
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from forerun.bounds import verifier
from forerun.bounds.verifier import MAGNITUDE_BITS, MIN_SYMBOLS
from forerun.core.errors import ConfigError
from forerun.nn.subspace import ConvGeometry, SubspaceNetwork, apply_layer, pool_rectified

_BATCH: Final = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer of an architecture; the dense layer of the scores comes after the last and is not listed.

    Attributes:
        kind: ``bank``: fixed filters, derivatives of a Gaussian in ``width`` directions and the Gaussian itself; comes
            first if at all. ``cells``: a bank on padded inputs, then contrasts, square roots and a cosine transform
            (:func:`~forerun.bounds.verifier.cosine_spectrum`); the layer of the scores comes straight after, and each
            of its weights has a coefficient of its own. ``conv``: learned filters. ``dense``: learned, as large as its
            input.
        width: Channels, or directions.
        kernel: Height and width, cut to the input's size; without meaning for ``dense``.
        stride: Of the kernel.
        pool: Height and width of the windows averaged after the ReLU, cut likewise.
    """

    kind: Literal["bank", "cells", "conv", "dense"]
    width: int
    kernel: int = 0
    stride: int = 1
    pool: int = 1

    def __post_init__(self) -> None:
        least = {"width": 1, "kernel": 0 if self.kind == "dense" else 1, "stride": 1, "pool": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name}={getattr(self, name)} of a {self.kind} layer: must be at least {value}")

    def as_json(self) -> list[Any]:
        """Return the layer as it stands in a grid."""
        return [self.kind, self.width, self.kernel, self.stride, self.pool]


Architecture = tuple[Layer, ...]
ONE_HIDDEN_LAYER: Final[Architecture] = (Layer(kind="dense", width=128),)


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorGrid:
    """What a message may choose from, each list uniformly; and what is fixed.

    Attributes:
        input_shape: Height, width and channels of an example; (1, features, 1) for what is no picture.
        num_classes: Classes, at least 2.
        input_scale: Features are multiplied by it; fixed, not measured on the data.
        architectures: Layers of each, without the last.
        subspace_dims: Numbers of coefficients.
        levels: Numbers of quantisation levels, odd: zero and pairs of equal magnitude.
        seeds: Seeds of start and projection.
    """

    input_shape: tuple[int, int, int]
    num_classes: int
    input_scale: float
    architectures: tuple[Architecture, ...] = (ONE_HIDDEN_LAYER,)
    subspace_dims: tuple[int, ...] = (40, 60, 80, 100, 120, 160, 240, 400)
    levels: tuple[int, ...] = (3, 5, 7, 9)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name in ("architectures", "subspace_dims", "levels", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name}={values}: needs at least one value, and none twice")
        if self.num_classes < 2 or min(self.input_shape) < 1:
            raise ConfigError(
                f"input_shape={self.input_shape}, num_classes={self.num_classes}: need at least 1 and at least 2"
            )
        if min(self.subspace_dims) < MIN_SYMBOLS:
            raise ConfigError(f"subspace_dims={self.subspace_dims}: each must be at least {MIN_SYMBOLS}")
        if any(value < 3 or value % 2 == 0 for value in self.levels):
            raise ConfigError(f"levels={self.levels}: each must be odd and at least 3")
        for architecture in self.architectures:
            kinds = [layer.kind for layer in architecture]
            if "bank" in kinds[1:]:
                raise ConfigError(f"architectures: {kinds} has a bank after its first layer; put it first")
            if "cells" in kinds and len(kinds) > 1:
                raise ConfigError(f"architectures: {kinds} has cells beside other layers; let them stand alone")

    def as_json(self) -> dict[str, Any]:
        """Return the grid as it stands in a certificate."""
        return {
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "input_scale": self.input_scale,
            "magnitude_bits": MAGNITUDE_BITS,
            "architectures": [[layer.as_json() for layer in layers] for layers in self.architectures],
            "subspace_dims": list(self.subspace_dims),
            "levels": list(self.levels),
            "seeds": list(self.seeds),
        }

    @property
    def sha256(self) -> str:
        """Digest to publish before the data are seen; the verifier is told which one to expect."""
        return verifier.grid_sha256(json.loads(json.dumps(self.as_json())))


def num_readout_values(grid: PriorGrid, architecture: Architecture) -> int:
    """Return how many weights and biases the layer of the scores has."""
    return _plan(grid, architecture)[-1][1].num_values


def _plan(grid: PriorGrid, architecture: Architecture) -> list[tuple[str, ConvGeometry]]:
    """Return kind and geometry of each layer, the last included."""
    layers = [layer.as_json() for layer in architecture]
    return [
        (kind, ConvGeometry(channels_in=before, channels_out=after, kernel=kernel, stride=stride, pool=pool))
        for kind, before, after, kernel, stride, pool in verifier.plan_layers(
            layers, grid.input_shape, grid.num_classes
        )
    ]


def build_network(grid: PriorGrid, *, architecture: Architecture, dim: int, seed: int) -> SubspaceNetwork:
    """Return the learned layers of one choice, in float32, for training; the verifier has its own, in float64."""
    layers, starts, projections = [], [], []
    for index, (kind, geometry) in enumerate(_plan(grid, architecture)):
        if kind == "bank":
            continue
        start, signs = verifier.layer_start_and_signs(seed, index, geometry.num_values, dim)
        start[-geometry.channels_out :] = 0
        fan_in = geometry.channels_in * geometry.kernel[0] * geometry.kernel[1]
        layers.append(geometry)
        starts.append(torch.from_numpy(start * (6 / fan_in) ** 0.5).float())
        projections.append(torch.from_numpy(signs * (2 / (fan_in * dim)) ** 0.5).float())
    return SubspaceNetwork(layers, starts, projections)


def prepare_inputs(
    grid: PriorGrid, architecture: Architecture, inputs: Float[np.ndarray, "n features"]
) -> Float[Tensor, "n channels height width"]:
    """Return what the network of :func:`build_network` reads: scaled inputs, after the fixed filters if any.

    Args:
        grid: The prior.
        architecture: One of its.
        inputs: Examples as they came.
    """
    kind, geometry = _plan(grid, architecture)[0]
    values, padding = None, (0, 0, 0, 0)
    if kind == "cells":
        geometry = replace(geometry, channels_out=geometry.channels_out - 1)
        padding = tuple(size // 2 for size in reversed(geometry.kernel) for _ in range(2))
    if kind in {"bank", "cells"}:
        filters = verifier.bank_filters(geometry.channels_out - 1, geometry.kernel) / geometry.channels_in
        weight = np.repeat(filters[:, None], geometry.channels_in, axis=1).ravel()
        values = torch.from_numpy(np.concatenate([weight, np.zeros(geometry.channels_out)])).float()
    parts = []
    for part in np.array_split(inputs, max(1, -(-len(inputs) // _BATCH))):
        maps = torch.from_numpy(part * grid.input_scale).float().view(-1, *grid.input_shape).permute(0, 3, 1, 2)
        if values is not None:
            maps = pool_rectified(apply_layer(pad(maps, padding), values, geometry), geometry)
        if kind == "cells":
            maps = torch.from_numpy(verifier.cosine_spectrum(maps.double().numpy())).float()
        parts.append(maps)
    return torch.cat(parts).contiguous()
