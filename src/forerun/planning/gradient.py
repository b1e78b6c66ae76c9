"""Gradient ascent on the actions themselves, from several beginnings at once, through dynamics and objective."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import INFEASIBLE, ActionBounds, History, Plan
from forerun.core.errors import ConfigError
from forerun.core.protocols import Dynamics, Objective
from forerun.planning.gaussian_search import first_mean
from forerun.planning.scoring import Candidates, judged


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientConfig:
    """Options of :class:`GradientPlanner`.

    Attributes:
        horizon: Actions of a plan.
        num_samples: Beginnings for each environment: the warm start, if there is one, and others drawn around it.
        num_iterations: Steps of ascent, the scoring of the beginnings included, unless the time is up before.
        init_std: Standard deviation of the beginnings, in units of the action.
        learning_rate: Of Adam, in units of the action.
    """

    horizon: int
    num_samples: int = 16
    num_iterations: int = 30
    init_std: float = 1.0
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        for name in ("horizon", "num_samples", "num_iterations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if not self.init_std > 0 or not self.learning_rate > 0:
            raise ConfigError(f"init_std={self.init_std}, learning_rate={self.learning_rate}: must be above 0")


class GradientPlanner:
    """Improves every beginning by Adam, and returns the best sequence that was ever scored.

    A candidate whose prediction is not finite stays where it is; one that breaks a hard constraint follows the
    violation alone.

    Args:
        config: Sizes.
        dynamics: Predicts futures; must give a gradient in the actions.
        objective: Scores them; likewise.
        bounds: Candidates are clamped to this box after every step; ``None``: not at all.

    Reference:
        As the gradient solvers beside the cross-entropy method in Maes et al. 2026 (arXiv 2603.19312), appendix D.
    """

    def __init__(
        self, config: GradientConfig, *, dynamics: Dynamics, objective: Objective, bounds: ActionBounds | None = None
    ) -> None:
        self.config = config
        self._dynamics, self._objective, self._bounds = dynamics, objective, bounds

    def plan(
        self,
        history: History,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Plan:
        """As :meth:`forerun.core.protocols.Planner.plan`; the warm start is the first of the beginnings.

        Raises:
            ConfigError: Dynamics and objective give no gradient.
        """
        leaf = self._beginnings(history, generator, warm_start).requires_grad_()
        ascent = torch.optim.Adam([leaf], lr=self.config.learning_rate, maximize=True)
        best: Candidates | None = None
        scored: Candidates | None = None
        num_iterations = 0
        while num_iterations < self.config.num_iterations and not (best is not None and is_late()):
            if num_iterations:
                ascent.step()
                with torch.no_grad():
                    leaf.copy_(self._clamped(leaf))
            with torch.enable_grad():
                states = self._dynamics.rollout(history, leaf, generator=generator)
                followed = judged(self._objective, history, states, leaf)
                leaf.grad = _slope(followed.scores, leaf)
            scored = Candidates(
                actions=leaf.detach().clone(), states=followed.states.detach(), scores=followed.scores.detach()
            )
            best = scored.best() if best is None else Candidates.joined(best, scored.best()).best()
            num_iterations += 1
        assert best is not None
        assert scored is not None
        return scored.decided(
            best=best,
            num_iterations=num_iterations,
            is_complete=num_iterations == self.config.num_iterations,
            num_candidates=num_iterations * self.config.num_samples,
        )

    def _beginnings(
        self, history: History, generator: torch.Generator, warm_start: Tensor | None
    ) -> Float[Tensor, "envs samples horizon action"]:
        mean = first_mean(
            history, warm_start, horizon=self.config.horizon, action_dim=self._dynamics.action_dim, bounds=self._bounds
        )
        shape = (len(mean), self.config.num_samples, *mean.shape[1:])
        noise = torch.randn(shape, generator=generator, dtype=mean.dtype).to(mean.device)
        if warm_start is not None:
            noise[:, 0] = 0.0
        return self._clamped(mean[:, None] + self.config.init_std * noise)

    def _clamped(self, actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        return actions if self._bounds is None else self._bounds.clamp(actions)


def _slope(scores: Float[Tensor, "envs samples"], actions: Tensor) -> Tensor:
    """Return where the scores rise; 0 where that is not finite.

    Scores of candidates that break a constraint are scaled back: their slopes would drown all later ones in Adam's
    averages.
    """
    gradient = None
    if scores.requires_grad:
        scaled = scores * torch.where(scores <= INFEASIBLE, -1 / INFEASIBLE, 1.0)
        [gradient] = torch.autograd.grad(scaled.sum(), actions, allow_unused=True)
    if gradient is None:
        raise ConfigError("dynamics or objective give no gradient in the actions; plan by 'cem' instead")
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
