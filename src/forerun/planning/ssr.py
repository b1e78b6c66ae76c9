"""Sample, score, rank: the planner of D-MPC, which needs no search because its proposals are good."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import INFEASIBLE, ActionBounds, History, Plan
from forerun.core.errors import ConfigError
from forerun.core.protocols import ActionProposal, Dynamics, Objective, RefiningProposal
from forerun.planning.scoring import Candidates, Scorer


@dataclass(frozen=True, kw_only=True, slots=True)
class SsrConfig:
    """Options of :class:`Ssr`; the defaults are the paper's planner.

    Attributes:
        num_samples: Action sequences drawn from the proposal, for each environment.
        num_rounds: Parts in which they are drawn and scored; a planner that is late stops between them.
        num_futures: Futures imagined for each sequence.
        risk_aversion: Standard deviations, over a sequence's futures, that are subtracted from its score.
        worst_share: Share of a sequence's futures, the worst ones, whose mean is its score (CVaR); 1: the mean of all.
        num_previewed: Sequences that a cheap dynamics ranks first, so that only the best ``num_samples`` of them are
            imagined in full; 0: no preview.
        num_refinements: Further rounds, each of ``num_samples`` sequences drawn near the best so far.
        num_elites: How many of the best these are drawn near.
        refine_level: How far from them, in (0, 1]; see :class:`~forerun.core.protocols.RefiningProposal`.
    """

    num_samples: int = 64
    num_rounds: int = 1
    num_futures: int = 1
    risk_aversion: float = 0.0
    worst_share: float = 1.0
    num_previewed: int = 0
    num_refinements: int = 0
    num_elites: int = 8
    refine_level: float = 0.4

    def __post_init__(self) -> None:
        if not 1 <= self.num_rounds <= self.num_samples:
            raise ConfigError(
                f"num_samples={self.num_samples}, num_rounds={self.num_rounds}: must be at least 1, and no more rounds "
                "than samples"
            )
        if self.num_futures < 1 or self.risk_aversion < 0 or not 0 < self.worst_share <= 1:
            raise ConfigError(
                f"num_futures={self.num_futures}, risk_aversion={self.risk_aversion}, worst_share={self.worst_share}: "
                "must be at least 1, at least 0, and in (0, 1]"
            )
        if self.num_previewed and self.num_previewed < self.num_samples:
            raise ConfigError(
                f"num_previewed={self.num_previewed}: must be at least num_samples={self.num_samples}, or 0"
            )
        if self.num_refinements < 0 or self.num_elites < 1 or not 0 < self.refine_level <= 1:
            raise ConfigError(
                f"num_refinements={self.num_refinements}, num_elites={self.num_elites}, refine_level="
                f"{self.refine_level}: must be at least 0, at least 1, and in (0, 1]"
            )


class Ssr:
    """Draws sequences from a proposal, imagines futures for each, and takes the best.

    Args:
        config: Sizes.
        proposal: Draws action sequences.
        dynamics: Imagines futures.
        objective: Scores them.
        bounds: Sequences are clamped to this box; ``None``: not at all.
        preview: The cheap dynamics of ``config.num_previewed``.

    Raises:
        ConfigError: A preview or a refinement is asked for, and there is no dynamics or proposal that can do it.

    Reference:
        Zhou et al. 2024 (arXiv 2410.05364), algorithm 2: one round, one future. Several futures guard against the
        candidate that wins by a lucky draw; CVaR as in Rockafellar and Uryasev 2000; refinement is SDEdit (arXiv
        2108.01073) of the elites.
    """

    def __init__(
        self,
        config: SsrConfig,
        *,
        proposal: ActionProposal,
        dynamics: Dynamics,
        objective: Objective,
        bounds: ActionBounds | None = None,
        preview: Dynamics | None = None,
    ) -> None:
        if config.num_previewed and preview is None:
            raise ConfigError(f"num_previewed={config.num_previewed}: needs a cheap dynamics; pass preview=...")
        if config.num_refinements and not isinstance(proposal, RefiningProposal):
            raise ConfigError(
                f"num_refinements={config.num_refinements}: {type(proposal).__name__} can't draw near given sequences; "
                "take a DiffusionProposal, or num_refinements=0"
            )
        self.config = config
        self._proposal, self._scorer, self._bounds = proposal, Scorer(dynamics, objective), bounds
        self._preview = None if preview is None else Scorer(preview, objective)

    @torch.no_grad()
    def plan(
        self,
        history: History,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Plan:
        """As :meth:`forerun.core.protocols.Planner.plan`; an iteration is a round or a refinement."""
        config = self.config
        scored: Candidates | None = None
        num_done, num_parts = 0, config.num_rounds + config.num_refinements
        for part in range(num_parts):
            if scored is not None and is_late():
                break
            if part < config.num_rounds:
                actions = self._proposed(history, part, generator, warm_start)
            else:
                assert scored is not None
                actions = self._refined(history, scored, generator)
            found = self._scored(history, actions, generator)
            scored = found if scored is None else Candidates.joined(scored, found)
            num_done += 1
        assert scored is not None
        return scored.decided(
            num_iterations=num_done, is_complete=num_done == num_parts, num_candidates=scored.actions.shape[1]
        )

    def _proposed(
        self,
        history: History,
        part: int,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None,
    ) -> Float[Tensor, "envs samples horizon action"]:
        """Return the sequences of a round; with a preview, the best of more."""
        config = self.config
        wanted, drawn = (
            count * (part + 1) // config.num_rounds - count * part // config.num_rounds
            for count in (config.num_samples, config.num_previewed or config.num_samples)
        )
        actions = self._proposal.propose(history, drawn, generator=generator, warm_start=warm_start)
        actions = actions if self._bounds is None else self._bounds.clamp(actions)
        if self._preview is None or not config.num_previewed:
            return actions
        return self._preview.score(history, actions, generator=generator).elites(wanted).actions

    def _refined(
        self, history: History, scored: Candidates, generator: torch.Generator
    ) -> Float[Tensor, "envs samples horizon action"]:
        """Return sequences near the best so far, as many of each as there is room for."""
        config = self.config
        assert isinstance(self._proposal, RefiningProposal)
        near = scored.elites(config.num_elites).actions
        copies = max(1, config.num_samples // near.shape[1])
        actions = self._proposal.refine(
            history, near.repeat_interleave(copies, dim=1), level=config.refine_level, generator=generator
        )
        return actions if self._bounds is None else self._bounds.clamp(actions)

    def _scored(
        self, history: History, actions: Float[Tensor, "envs samples horizon action"], generator: torch.Generator
    ) -> Candidates:
        """Score sequences over their futures; the first future of each is the one that is shown."""
        count = self.config.num_futures
        scored = self._scorer.score(history, actions.repeat_interleave(count, dim=1), generator=generator)
        if count == 1:
            return scored
        scores = scored.scores.unflatten(1, (-1, count))
        num_worst = max(1, round(self.config.worst_share * count))
        judged = scores.topk(num_worst, dim=-1, largest=False).values.mean(dim=-1)
        if self.config.risk_aversion > 0:
            judged = judged - self.config.risk_aversion * scores.std(dim=-1)
        # One future that breaks a hard constraint, or that is not finite, decides: means of such scores mean nothing.
        worst = scores.amin(dim=-1)
        return Candidates(
            actions=actions,
            states=scored.states[:, ::count],
            scores=torch.where(worst > INFEASIBLE, judged, worst),
        )
