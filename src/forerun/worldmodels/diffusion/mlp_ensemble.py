"""Several small networks as one: two hidden layers each, weights stacked, one product for all."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class MlpEnsemble(nn.Module):
    """Networks of one shape with starts of their own.

    Args:
        num_inputs: Numbers that each is given.
        num_outputs: Numbers that each says.
        num_members: Networks.
        width: Of their two hidden layers.
    """

    def __init__(self, num_inputs: int, num_outputs: int, *, num_members: int, width: int) -> None:
        super().__init__()
        sizes = (num_inputs, width, width, num_outputs)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(num_members, before, after) * before**-0.5)
            for before, after in itertools.pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(num_members, 1, after)) for after in sizes[1:])

    @property
    def num_members(self) -> int:
        """Networks."""
        return len(self.weights[0])

    def predicted(self, inputs: Float[Tensor, "members rows inputs"]) -> Float[Tensor, "members rows outputs"]:
        """Return what each network says of its rows."""
        hidden = inputs
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            hidden = hidden if place == len(self.weights) - 1 else functional.silu(hidden)
        return hidden

    def resampled_error(
        self,
        inputs: Float[Tensor, "rows inputs"],
        targets: Float[Tensor, "rows outputs"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Return the mean squared error of all members, each on its own draw of the rows, so that they differ."""
        rows = torch.randint(len(inputs), (self.num_members, len(inputs)), generator=generator)
        return ((self.predicted(inputs[rows]) - targets[rows]) ** 2).mean()
