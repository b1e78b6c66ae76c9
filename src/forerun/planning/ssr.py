"""Sample, score, rank: the planner of D-MPC, which needs no search because its proposals are good."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History, Plan
from forerun.core.errors import ConfigError
from forerun.core.protocols import ActionProposal, Dynamics, Objective
from forerun.planning.scoring import Scorer


@dataclass(frozen=True, kw_only=True, slots=True)
class SsrConfig:
    """Options of :class:`Ssr`.

    Attributes:
        num_samples: Action sequences drawn from the proposal, for each environment.
    """

    num_samples: int = 64

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ConfigError(f"num_samples={self.num_samples}: must be at least 1")


class Ssr:
    """Draws sequences from a proposal, imagines one future for each, and takes the best.

    Args:
        config: Sizes.
        proposal: Draws action sequences.
        dynamics: Imagines futures.
        objective: Scores them.
        bounds: Sequences are clamped to this box; ``None``: not at all.

    Reference:
        Zhou et al. 2024 (arXiv 2410.05364), algorithm 2.
    """

    def __init__(
        self,
        config: SsrConfig,
        *,
        proposal: ActionProposal,
        dynamics: Dynamics,
        objective: Objective,
        bounds: ActionBounds | None = None,
    ) -> None:
        self.config = config
        self._proposal, self._scorer, self._bounds = proposal, Scorer(dynamics, objective), bounds

    @torch.no_grad()
    def plan(
        self,
        history: History,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Plan:
        """As :meth:`forerun.core.protocols.Planner.plan`, in one iteration."""
        actions = self._proposal.propose(history, self.config.num_samples, generator=generator, warm_start=warm_start)
        actions = actions if self._bounds is None else self._bounds.clamp(actions)
        scored = self._scorer.score(history, actions, generator=generator)
        best = scored.best()
        return Plan(
            actions=best.actions[:, 0],
            states=best.states[:, 0],
            scores=best.scores[:, 0],
            futures=scored.states,
            future_actions=scored.actions,
            future_scores=scored.scores,
            num_iterations=1,
            num_candidates=self.config.num_samples,
        )
