"""Rank what a joint model of actions and states draws: the baseline whose dynamics can't be tuned alone."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History, Plan
from forerun.core.errors import ConfigError
from forerun.core.protocols import JointModel, Objective
from forerun.planning.scoring import judged


class JointRanking:
    """Draws plans together with their futures, and takes the one that scores best.

    Args:
        model: Draws.
        objective: Scores.
        num_samples: Draws for each environment.
        bounds: Actions are clamped to this box.

    Raises:
        ConfigError: There is nothing to draw.
    """

    def __init__(self, model: JointModel, *, objective: Objective, num_samples: int, bounds: ActionBounds) -> None:
        if num_samples < 1:
            raise ConfigError(f"num_samples={num_samples}: must be at least 1")
        self._model, self._objective, self._num_samples, self._bounds = model, objective, num_samples, bounds

    @torch.no_grad()
    def plan(
        self,
        history: History,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Plan:
        """As :meth:`forerun.core.protocols.Planner.plan`, in one iteration; a warm start is ignored."""
        actions, states = self._model.draw(history, self._num_samples, generator=generator)
        scored = judged(self._objective, history, states, self._bounds.clamp(actions))
        return scored.decided(num_iterations=1, is_complete=True, num_candidates=self._num_samples)
