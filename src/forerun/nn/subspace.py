"""Networks whose weights lie in a random subspace: a few coefficients move all of them."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, relu


class SubspaceMlp(nn.Module):
    r"""A network with ReLUs between its linear layers, weights :math:`\theta = \theta_0 + P w`.

    Args:
        sizes: Features in, of each hidden layer, and out.
        starts: :math:`\theta_0` of each layer, ``[fan_out * (fan_in + 1)]``: the weight row by row, then the bias.
        projections: P of each layer, ``[fan_out * (fan_in + 1), dim]``.

    Raises:
        ValueError: Shapes do not fit together.
    """

    def __init__(self, sizes: tuple[int, ...], starts: list[Tensor], projections: list[Tensor]) -> None:
        super().__init__()
        expected = [fan_out * (fan_in + 1) for fan_in, fan_out in itertools.pairwise(sizes)]
        if [len(start) for start in starts] != expected or [len(matrix) for matrix in projections] != expected:
            raise ValueError(f"layers {sizes} have {expected} values; starts or projections have other numbers")
        self.sizes = sizes
        self.register_buffer("start", torch.cat(starts))
        self.register_buffer("projection", torch.cat(projections))
        self._lengths = expected

    @property
    def dim(self) -> int:
        """Number of coefficients."""
        return self.get_buffer("projection").shape[1]

    def forward(
        self, inputs: Float[Tensor, "batch features"], coefficients: Float[Tensor, " dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the scores of the network at a point of the subspace."""
        return self.scores(inputs, self.get_buffer("start") + self.get_buffer("projection") @ coefficients)

    def scores(
        self, inputs: Float[Tensor, "batch features"], values: Float[Tensor, " values"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the scores of the network whose weights are given, in the order of ``starts``."""
        hidden = inputs
        for index, layer in enumerate(values.split(self._lengths)):
            fan_in, fan_out = self.sizes[index], self.sizes[index + 1]
            weight, bias = layer.split([fan_out * fan_in, fan_out])
            hidden = linear(hidden, weight.view(fan_out, fan_in), bias)
            hidden = relu(hidden) if index < len(self._lengths) - 1 else hidden
        return hidden
