"""A policy that answers at once what a planner would have planned, and says when it is not sure."""

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import History
from forerun.worldmodels.diffusion.frame import Frame
from forerun.worldmodels.diffusion.mlp_ensemble import MlpEnsemble


class ReactivePolicy(MlpEnsemble):
    """Several small networks that imitate a planner's first action; where they differ, they have not learned enough.

    Args:
        frame: Units of states and actions.
        num_members: Networks.
        width: Of their hidden layers.
    """

    def __init__(self, frame: Frame, *, num_members: int = 4, width: int = 128) -> None:
        super().__init__(frame.context_dim, len(frame.actions.shift), num_members=num_members, width=width)
        self.frame = frame

    def loss(
        self,
        states: Float[Tensor, "rows state"],
        actions: Float[Tensor, "rows action"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Return the mean squared error against the planner's actions; see :meth:`MlpEnsemble.resampled_error`."""
        return self.resampled_error(self._context(states), self.frame.actions(actions), generator=generator)

    @torch.no_grad()
    def answer(
        self, states: Float[Tensor, "envs state"]
    ) -> tuple[Float[Tensor, "envs action"], Float[Tensor, " envs"]]:
        """Return the members' mean action, inside its box, and how much they differ, in units of half the box."""
        guesses = self.predicted(self._context(states).expand(self.num_members, -1, -1))
        return self.frame.actions.inverse(guesses.mean(dim=0).clamp(-1.0, 1.0)), guesses.std(dim=0).mean(dim=-1)

    def _context(self, states: Float[Tensor, "rows state"]) -> Float[Tensor, "rows context"]:
        return self.frame.context(History.of_present(states, action_dim=len(self.frame.actions.shift)))
