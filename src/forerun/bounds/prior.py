"""The prior: a grid of choices fixed before the data are seen, and how a choice unfolds into a network.

Only what the decoder needs is here, and all of it is paid for or fixed. Optimisers, learning rates, numbers of steps
and restarts are not: the bound holds for every message at once, so how one was found is free.
"""

import itertools
import json
from dataclasses import dataclass
from typing import Any

import torch

from forerun.bounds.verifier import MAGNITUDE_BITS, MIN_SYMBOLS, grid_sha256, layer_start_and_signs
from forerun.core.errors import ConfigError
from forerun.nn.subspace import SubspaceMlp


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorGrid:
    """What a message may choose from, each list uniformly; and what is fixed.

    Attributes:
        num_inputs: Features of an example.
        num_classes: Classes, at least 2.
        input_scale: Features are multiplied by it; fixed, not measured on the data.
        hidden_widths: Architectures: widths of the hidden layers of each.
        subspace_dims: Numbers of coefficients.
        levels: Numbers of quantisation levels, odd: zero and pairs of equal magnitude.
        seeds: Seeds of start and projection.
    """

    num_inputs: int
    num_classes: int
    input_scale: float
    hidden_widths: tuple[tuple[int, ...], ...] = ((128,),)
    subspace_dims: tuple[int, ...] = (40, 60, 80, 100, 120, 160, 240, 400)
    levels: tuple[int, ...] = (3, 5, 7, 9)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name in ("hidden_widths", "subspace_dims", "levels", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name}={values}: needs at least one value, and none twice")
        if self.num_classes < 2 or self.num_inputs < 1:
            raise ConfigError(
                f"num_inputs={self.num_inputs}, num_classes={self.num_classes}: need at least 1 and at least 2"
            )
        if min(self.subspace_dims) < MIN_SYMBOLS:
            raise ConfigError(f"subspace_dims={self.subspace_dims}: each must be at least {MIN_SYMBOLS}")
        if any(value < 3 or value % 2 == 0 for value in self.levels):
            raise ConfigError(f"levels={self.levels}: each must be odd and at least 3")
        if any(width < 1 for widths in self.hidden_widths for width in widths):
            raise ConfigError(f"hidden_widths={self.hidden_widths}: each width must be at least 1")

    def as_json(self) -> dict[str, Any]:
        """Return the grid as it stands in a certificate."""
        return {
            "num_inputs": self.num_inputs,
            "num_classes": self.num_classes,
            "input_scale": self.input_scale,
            "magnitude_bits": MAGNITUDE_BITS,
            "hidden_widths": [list(widths) for widths in self.hidden_widths],
            "subspace_dims": list(self.subspace_dims),
            "levels": list(self.levels),
            "seeds": list(self.seeds),
        }

    @property
    def sha256(self) -> str:
        """Digest to publish before the data are seen; the verifier is told which one to expect."""
        return grid_sha256(json.loads(json.dumps(self.as_json())))


def build_network(grid: PriorGrid, *, hidden_widths: tuple[int, ...], dim: int, seed: int) -> SubspaceMlp:
    """Return the network of one choice, in float32, for training; the verifier has its own, in float64."""
    sizes = (grid.num_inputs, *hidden_widths, grid.num_classes)
    starts, projections = [], []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        start, signs = layer_start_and_signs(seed, index, fan_out * (fan_in + 1), dim)
        starts.append(torch.from_numpy(start / fan_in**0.5).float())
        projections.append(torch.from_numpy(signs / (dim * fan_in) ** 0.5).float())
    return SubspaceMlp(sizes, starts, projections)
