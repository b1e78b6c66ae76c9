"""Networks whose weights lie in a random subspace: a few coefficients move all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, relu


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvGeometry:
    """One convolution without padding, and the average pooling after it; a dense layer is one as large as its input.

    Attributes:
        channels_in: Of its input.
        channels_out: Of its output.
        kernel: Height and width.
        stride: Of the kernel.
        pool: Height and width of the windows that are averaged after the ReLU; they do not overlap.
    """

    channels_in: int
    channels_out: int
    kernel: tuple[int, int]
    stride: int
    pool: tuple[int, int]

    @property
    def num_values(self) -> int:
        """Weights and biases."""
        return self.channels_out * (self.channels_in * self.kernel[0] * self.kernel[1] + 1)


def apply_layer(
    maps: Float[Tensor, "batch channels_in height width"], values: Float[Tensor, " values"], geometry: ConvGeometry
) -> Float[Tensor, "batch channels_out height_out width_out"]:
    """Return the sums of a layer, before any ReLU or pooling.

    Args:
        maps: Input.
        values: Weights ``[channels_out, channels_in, height, width]`` row by row, then biases.
        geometry: Their shape.
    """
    weight, bias = values.split([geometry.num_values - geometry.channels_out, geometry.channels_out])
    weight = weight.view(geometry.channels_out, geometry.channels_in, *geometry.kernel)
    return conv2d(maps, weight, bias, stride=geometry.stride)


def pool_rectified(maps: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return the averages over windows of the ReLU of a layer's sums."""
    return relu(maps) if geometry.pool == (1, 1) else avg_pool2d(relu(maps), geometry.pool)


class Subspace(Protocol):
    r"""A network as a function of a few coefficients w, which move its parameters, :math:`\theta_0 + P w`."""

    @property
    def dim(self) -> int:
        """Number of coefficients."""
        ...

    def __call__(self, inputs: Tensor, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, "batch classes"]:
        """Return the scores of the network at a point of the subspace."""
        ...

    def values(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " values"]:
        """Return the parameters at a point."""
        ...

    def column(self, index: int) -> Float[Tensor, " values"]:
        """Return the direction of one coefficient."""
        ...

    def scores(self, inputs: Tensor, values: Float[Tensor, " values"]) -> Float[Tensor, "batch classes"]:
        """Return the scores of the network whose parameters are given."""
        ...


class SubspaceNetwork(nn.Module):
    r"""Convolutions with ReLUs between them, weights :math:`\theta = \theta_0 + P w`.

    Args:
        layers: In order; the last one's output has one place, whose channels are the scores.
        starts: :math:`\theta_0` of each layer, as :func:`apply_layer` takes it.
        projections: P of each layer, ``[values, dim]``.

    Raises:
        ValueError: Shapes do not fit together.
    """

    def __init__(self, layers: Sequence[ConvGeometry], starts: list[Tensor], projections: list[Tensor]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self._lengths = [layer.num_values for layer in layers]
        if [len(start) for start in starts] != self._lengths or [len(p) for p in projections] != self._lengths:
            raise ValueError(f"the layers have {self._lengths} values; starts or projections have other numbers")
        self.register_buffer("start", torch.cat(starts))
        self.register_buffer("projection", torch.cat(projections))

    @property
    def dim(self) -> int:
        """Number of coefficients."""
        return self.get_buffer("projection").shape[1]

    def forward(
        self, inputs: Float[Tensor, "batch channels height width"], coefficients: Float[Tensor, " dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the scores of the network at a point of the subspace."""
        return self.scores(inputs, self.values(coefficients))

    def values(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " values"]:
        """Return the weights at a point, in the order of ``starts``."""
        return self.get_buffer("start") + self.get_buffer("projection") @ coefficients

    def column(self, index: int) -> Float[Tensor, " values"]:
        """Return the direction of one coefficient."""
        return self.get_buffer("projection")[:, index]

    def scores(
        self, inputs: Float[Tensor, "batch channels height width"], values: Float[Tensor, " values"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the scores of the network whose weights are given, in the order of ``starts``."""
        maps = inputs
        for index, (layer, part) in enumerate(zip(self.layers, values.split(self._lengths), strict=True)):
            maps = apply_layer(maps, part, layer)
            maps = pool_rectified(maps, layer) if index < len(self.layers) - 1 else maps
        return maps.flatten(1)
