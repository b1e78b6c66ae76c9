"""An exponential moving average of the weights along a run, which often generalises better than its last step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows parameters; early steps count for more, so that the initial weights are soon forgotten.

    After step t (from 1) the average moves to the weights by one minus the smaller of the decay and (1 + t) / (10 + t).

    Args:
        parameters: What to follow, by name.
        decay: Share that stays at each step, in (0, 1).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, decay: float) -> None:
        self._parameters, self._decay = dict(parameters), decay
        self.tensors: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        """The average, by name."""

    @torch.no_grad()
    def update(self, num_steps: int) -> None:
        """Take the weights after a step.

        Args:
            num_steps: Steps done, this one included.
        """
        decay = min(self._decay, (1 + num_steps) / (10 + num_steps))
        for name, tensor in self.tensors.items():
            tensor.lerp_(self._parameters[name], 1 - decay)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from an average of an earlier run."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the parameters, and the weights back at the end."""
        weights = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self.copy_to_parameters()
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data.copy_(weights[name])

    def copy_to_parameters(self) -> None:
        """Put the average into the parameters for good."""
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self.tensors[name])
