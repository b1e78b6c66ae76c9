"""Random shooting: sample, score and rank with a proposal that knows nothing."""

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History
from forerun.core.protocols import Dynamics, Objective
from forerun.planning.ssr import Ssr, SsrConfig


class UniformProposal:
    """Draws every action uniformly from a box; a warm start is its first sequence.

    Args:
        bounds: The box.
        horizon: Actions of a sequence.
    """

    def __init__(self, bounds: ActionBounds, *, horizon: int) -> None:
        self.horizon, self.action_dim = horizon, len(bounds.low)
        self._bounds = bounds

    def propose(
        self,
        history: History,
        num_samples: int,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
    ) -> Float[Tensor, "envs samples horizon action"]:
        """As :meth:`forerun.core.protocols.ActionProposal.propose`."""
        low, high = self._bounds.low, self._bounds.high
        shape = (history.num_envs, num_samples, self.horizon, self.action_dim)
        drawn = low + (high - low) * torch.rand(shape, generator=generator).to(low)
        if warm_start is not None:
            drawn[:, 0] = warm_start
        return drawn


class RandomShooting(Ssr):
    """Scores uniform action sequences and takes the best.

    Args:
        config: Sizes.
        horizon: Actions of a plan.
        dynamics: Imagines futures.
        objective: Scores them.
        bounds: The box that actions are drawn from.
    """

    def __init__(
        self, config: SsrConfig, *, horizon: int, dynamics: Dynamics, objective: Objective, bounds: ActionBounds
    ) -> None:
        super().__init__(
            config,
            proposal=UniformProposal(bounds, horizon=horizon),
            dynamics=dynamics,
            objective=objective,
            bounds=bounds,
        )
