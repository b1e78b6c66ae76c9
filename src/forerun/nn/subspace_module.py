"""Any module with its parameters in a random subspace: a few coefficients move all of them."""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from forerun.nn.projections.base import Projection

_UNIFORM_VARIANCE: Final = 1 / 3


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return by name the parameters that ask for a gradient; shared ones once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def count_trained(module: nn.Module) -> int:
    """Return how many values of a module are trained."""
    return sum(parameter.numel() for parameter in trained_parameters(module).values())


def natural_size(start: Tensor) -> float:
    r"""Return by how much a parameter may move: its root mean square, or of a zero tensor that of PyTorch's start.

    The latter is :math:`1 / \sqrt{3 f}` with f the values that enter one output: all but the first axis of a matrix,
    all of a vector.
    """
    size = float(start.detach().double().square().mean().sqrt())
    fan_in = math.prod(start.shape[1:]) if start.ndim > 1 else start.numel()
    return size if size > 0 else math.sqrt(_UNIFORM_VARIANCE / max(fan_in, 1))


class ModuleSubspace(nn.Module):
    r"""A module as a function of coefficients: its parameters are :math:`\theta_0 + S P w`.

    S holds each parameter's :func:`natural_size` at the start. What asks for no gradient stays as it is, and so do
    buffers. The module is put into evaluation mode for good: dropout is off, statistics are fixed.

    Args:
        module: At its start; taken over.
        projection: P, with as many values as the module has parameters that ask for a gradient.

    Raises:
        ValueError: The numbers differ.
    """

    def __init__(self, module: nn.Module, projection: Projection) -> None:
        super().__init__()
        parameters = trained_parameters(module)
        self._names, self._shapes = list(parameters), [parameter.shape for parameter in parameters.values()]
        self._lengths = [parameter.numel() for parameter in parameters.values()]
        if projection.num_values != sum(self._lengths):
            raise ValueError(f"the projection has {projection.num_values} values, the module {sum(self._lengths)}")
        starts = [parameter.detach().flatten() for parameter in parameters.values()]
        sizes = [
            torch.full_like(start, natural_size(parameters[name]))
            for name, start in zip(self._names, starts, strict=True)
        ]
        self.register_buffer("start", torch.cat(starts))
        self.register_buffer("sizes", torch.cat(sizes))
        self.module = module.requires_grad_(requires_grad=False)
        self.projection = projection
        self.eval()

    @property
    def dim(self) -> int:
        """Number of coefficients."""
        return self.projection.dim

    def forward(self, inputs: Tensor, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, "batch classes"]:
        """Return the scores of the module at a point of the subspace."""
        return self.scores(inputs, self.values(coefficients))

    def values(self, coefficients: Float[Tensor, " dim"]) -> Float[Tensor, " values"]:
        """Return the parameters at a point."""
        return self.get_buffer("start") + self.get_buffer("sizes") * self.projection(coefficients)

    def column(self, index: int) -> Float[Tensor, " values"]:
        """Return the direction of one coefficient."""
        return self.get_buffer("sizes") * self.projection.column(index)

    def scores(self, inputs: Tensor, values: Float[Tensor, " values"]) -> Float[Tensor, "batch classes"]:
        """Return the scores of the module whose parameters are given."""
        parts = values.split(self._lengths)
        named = {name: part.view(shape) for name, part, shape in zip(self._names, parts, self._shapes, strict=True)}
        return functional_call(self.module, named, (inputs,))
