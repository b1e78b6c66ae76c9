"""Numbers of about the size of 1, and back: one shift and scale for each dimension, kept with the model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.core.errors import TrajectoryError

LEAST_STD = 1e-6
"""Dimensions that vary less are constant: they get the scale 1, so that they become 0 and never infinite."""


class Normalizer(nn.Module):
    """An affine map for each dimension; its numbers are buffers, so they are saved with a model's weights.

    Args:
        shift: What becomes 0.
        scale: What becomes 1 beyond it, above 0.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Float[Tensor, " *dims"], scale: Float[Tensor, " *dims"]) -> None:
        super().__init__()
        self.register_buffer("shift", shift.float().clone())
        self.register_buffer("scale", scale.float().clone())

    @classmethod
    def of_mean_and_std(cls, values: Float[Tensor, "samples ..."]) -> "Normalizer":
        """Return the map that gives these values mean 0 and standard deviation 1; constant dimensions become 0."""
        std = values.double().std(dim=0, correction=0)
        scale = torch.where(std < LEAST_STD, torch.ones_like(std), std)
        return cls(values.double().mean(dim=0), scale)

    @classmethod
    def of_range(cls, low: Float[Tensor, " *dims"], high: Float[Tensor, " *dims"]) -> "Normalizer":
        """Return the map of [low, high] to [-1, 1]."""
        return cls(0.5 * (low + high), 0.5 * (high - low))

    def forward(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the values in units of the scale."""
        return (values - self.shift) / self.scale

    def inverse(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the values in their own units again."""
        return values * self.scale + self.shift


def constant_dimensions(values: Float[Tensor, "samples dims"], names: Sequence[str]) -> list[str]:
    """Return the names of the dimensions that hardly vary."""
    std = values.double().std(dim=0, correction=0)
    return [name for name, spread in zip(names, std.tolist(), strict=True) if spread < LEAST_STD]


def check_action_range(
    actions: Float[Tensor, "samples action"],
    *,
    low: Float[Tensor, " action"],
    high: Float[Tensor, " action"],
    names: Sequence[str],
) -> None:
    """Refuse actions outside the box that a task allows.

    Raises:
        TrajectoryError: One lies outside by more than a thousandth of the box.
    """
    slack = 1e-3 * (high - low)
    is_wrong = (actions < low - slack) | (actions > high + slack)
    if bool(is_wrong.any()):
        row, column = is_wrong.nonzero()[0].tolist()
        raise TrajectoryError(
            f"action {names[column]!r} is {float(actions[row, column]):.4g} at step {row} of the recording "
            f"({int(is_wrong.any(dim=1).sum())} steps in all): must lie in [{float(low[column]):g}, "
            f"{float(high[column]):g}]; give the right bounds, or rescale the recording"
        )
