"""What planning in a latent space asks of a world model from pixels."""

from typing import Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from forerun.core.control import ActionBounds, History
from forerun.data.normalizer import Normalizer


class Windowed(Protocol):
    """A predictor that sees the last steps.

    Attributes:
        history: How many at most.
    """

    @property
    def history(self) -> int: ...  # noqa: D102 (in the class docstring)


class LatentModel(Protocol):
    """A :class:`~forerun.core.protocols.Dynamics` whose states are embeddings of frames.

    Attributes:
        action_dim: Numbers of a block of actions.
        action_normalizer: From raw blocks to the model's units.
        predictor: Predicts embeddings.
    """

    action_dim: int

    @property
    def action_normalizer(self) -> Normalizer: ...  # noqa: D102
    @property
    def predictor(self) -> Windowed: ...  # noqa: D102

    def encode_all(self, pixels: UInt8[Tensor, "frames height width 3"]) -> Float[Tensor, "frames D"]:
        """Return the embedding of each frame."""
        ...

    def action_bounds(self, limit: float) -> ActionBounds:
        """Return the box of raw actions in [-limit, limit], in the model's units."""
        ...

    def rollout(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon A"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon D"]:
        """As :meth:`forerun.core.protocols.Dynamics.rollout`."""
        ...
