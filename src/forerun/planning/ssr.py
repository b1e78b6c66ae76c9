"""Sample, score, rank: the planner of D-MPC, which needs no search because its proposals are good."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import INFEASIBLE, ActionBounds, History, Plan
from forerun.core.errors import ConfigError
from forerun.core.protocols import ActionProposal, Dynamics, Objective
from forerun.planning.scoring import Candidates, Scorer


@dataclass(frozen=True, kw_only=True, slots=True)
class SsrConfig:
    """Options of :class:`Ssr`.

    Attributes:
        num_samples: Action sequences drawn from the proposal, for each environment.
        num_rounds: Parts in which they are drawn and scored; a planner that is late stops between them.
        num_futures: Futures imagined for each sequence.
        risk_aversion: Standard deviations, over a sequence's futures, that are subtracted from its mean score.
    """

    num_samples: int = 64
    num_rounds: int = 1
    num_futures: int = 1
    risk_aversion: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.num_rounds <= self.num_samples:
            raise ConfigError(
                f"num_samples={self.num_samples}, num_rounds={self.num_rounds}: must be at least 1, and no more rounds "
                "than samples"
            )
        if self.num_futures < 1 or self.risk_aversion < 0:
            raise ConfigError(
                f"num_futures={self.num_futures}, risk_aversion={self.risk_aversion}: must be at least 1 and at least 0"
            )


class Ssr:
    """Draws sequences from a proposal, imagines futures for each, and takes the best.

    Args:
        config: Sizes.
        proposal: Draws action sequences.
        dynamics: Imagines futures.
        objective: Scores them.
        bounds: Sequences are clamped to this box; ``None``: not at all.

    Reference:
        Zhou et al. 2024 (arXiv 2410.05364), algorithm 2: one round, one future. Several futures guard against the
        candidate that wins by a lucky draw.
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
        """As :meth:`forerun.core.protocols.Planner.plan`; an iteration is a round."""
        scored: Candidates | None = None
        num_rounds = 0
        for part in range(self.config.num_rounds):
            if scored is not None and is_late():
                break
            begin, end = (self.config.num_samples * edge // self.config.num_rounds for edge in (part, part + 1))
            actions = self._proposal.propose(history, end - begin, generator=generator, warm_start=warm_start)
            actions = actions if self._bounds is None else self._bounds.clamp(actions)
            found = self._scored(history, actions, generator)
            scored = found if scored is None else Candidates.joined(scored, found)
            num_rounds += 1
        assert scored is not None
        best = scored.best()
        return Plan(
            actions=best.actions[:, 0],
            states=best.states[:, 0],
            scores=best.scores[:, 0],
            futures=scored.states,
            future_actions=scored.actions,
            future_scores=scored.scores,
            num_iterations=num_rounds,
            is_complete=num_rounds == self.config.num_rounds,
            num_candidates=scored.actions.shape[1],
        )

    def _scored(
        self, history: History, actions: Float[Tensor, "envs samples horizon action"], generator: torch.Generator
    ) -> Candidates:
        """Score sequences over their futures; the first future of each is the one that is shown."""
        count = self.config.num_futures
        scored = self._scorer.score(history, actions.repeat_interleave(count, dim=1), generator=generator)
        if count == 1:
            return scored
        scores = scored.scores.unflatten(1, (-1, count))
        judged = scores.mean(dim=-1) - self.config.risk_aversion * scores.std(dim=-1)
        # One future that breaks a hard constraint, or that is not finite, decides: means of such scores mean nothing.
        worst = scores.amin(dim=-1)
        return Candidates(
            actions=actions,
            states=scored.states[:, ::count],
            scores=torch.where(worst > INFEASIBLE, judged, worst),
        )
