"""The search that CEM, iCEM and MPPI share: draw around a mean, score, move the mean, repeat."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History, Plan
from forerun.core.errors import ConfigError
from forerun.core.protocols import ActionProposal, Dynamics, Objective
from forerun.planning.scoring import Candidates, Scorer


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianSearchConfig:
    """What every Gaussian search needs to know.

    Attributes:
        horizon: Actions of a plan.
        num_samples: Candidates of an iteration, for each environment.
        num_iterations: Iterations, unless the time is up before.
        init_std: Standard deviation of each action at the start, in units of the action.
        returns: ``best``: the best candidate that was ever scored. ``mean``: the final mean, scored once more.
        num_proposals: Sequences drawn once from the proposal and scored beside the candidates of every iteration.
    """

    horizon: int
    num_samples: int = 300
    num_iterations: int = 10
    init_std: float = 1.0
    returns: Literal["best", "mean"] = "best"
    num_proposals: int = 0

    def __post_init__(self) -> None:
        for name in ("horizon", "num_samples", "num_iterations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if not self.init_std > 0:
            raise ConfigError(f"init_std={self.init_std}: must be above 0; a width to search in")
        if self.num_proposals < 0:
            raise ConfigError(f"num_proposals={self.num_proposals}: must be at least 0; 0 uses no proposal")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchLaw:
    """Where an iteration searches.

    Attributes:
        mean: Centre of the next draws.
        std: Their standard deviation.
        kept: Actions of the last iteration to score again; ``None`` for none.
    """

    mean: Float[Tensor, "envs horizon action"]
    std: Float[Tensor, "envs horizon action"]
    kept: Float[Tensor, "envs kept horizon action"] | None = None


Config = TypeVar("Config", bound=GaussianSearchConfig)


class GaussianSearch(ABC, Generic[Config]):
    """A planner that searches with a Gaussian over action sequences; a subclass says how it draws and moves.

    Args:
        config: Sizes.
        dynamics: Predicts futures.
        objective: Scores them.
        bounds: Candidates are clamped to this box; ``None``: not at all.
        proposal: Gives ``config.num_proposals`` more candidates, such as those of a learned policy.

    Raises:
        ConfigError: Proposals are asked for and there is none, or its horizon is another.
    """

    def __init__(
        self,
        config: Config,
        *,
        dynamics: Dynamics,
        objective: Objective,
        bounds: ActionBounds | None = None,
        proposal: ActionProposal | None = None,
    ) -> None:
        if config.num_proposals and (proposal is None or proposal.horizon != config.horizon):
            found = "none was given" if proposal is None else f"its horizon is {proposal.horizon}"
            raise ConfigError(
                f"num_proposals={config.num_proposals}: needs a proposal with a horizon of {config.horizon}, but "
                f"{found}; pass proposal=..., or num_proposals=0"
            )
        self.config = config
        self._scorer, self._action_dim = Scorer(dynamics, objective), dynamics.action_dim
        self._bounds, self._proposal = bounds, proposal

    @torch.no_grad()
    def plan(
        self,
        history: History,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Plan:
        """As :meth:`forerun.core.protocols.Planner.plan`; the warm start is the first mean."""
        law = self._first_law(history, warm_start)
        proposals = self._proposals(history, generator, warm_start)
        best: Candidates | None = None
        scored: Candidates | None = None
        num_iterations = num_candidates = 0
        while num_iterations < self.config.num_iterations and not (best is not None and is_late()):
            drawn = self._clamped(self._draw(law, num_iterations, generator=generator))
            actions = torch.cat([part for part in (drawn, law.kept, proposals) if part is not None], dim=1)
            scored = self._scorer.score(history, actions, generator=generator)
            best = scored.best() if best is None else Candidates.joined(best, scored.best()).best()
            law = self._moved(law, scored)
            num_iterations += 1
            num_candidates += actions.shape[1]
        assert best is not None
        assert scored is not None
        if self.config.returns == "mean":
            best = self._scorer.score(history, self._clamped(law.mean[:, None]), generator=generator)
            num_candidates += 1
        return scored.decided(
            best=best,
            num_iterations=num_iterations,
            is_complete=num_iterations == self.config.num_iterations,
            num_candidates=num_candidates,
        )

    @abstractmethod
    def _draw(
        self, law: SearchLaw, iteration: int, *, generator: torch.Generator
    ) -> Float[Tensor, "envs samples horizon action"]:
        """Return the new candidates of an iteration; kept ones are not among them."""

    @abstractmethod
    def _moved(self, law: SearchLaw, scored: Candidates) -> SearchLaw:
        """Return where the next iteration searches."""

    def _first_law(self, history: History, warm_start: Float[Tensor, "envs horizon action"] | None) -> SearchLaw:
        mean = first_mean(
            history, warm_start, horizon=self.config.horizon, action_dim=self._action_dim, bounds=self._bounds
        )
        return SearchLaw(mean=mean, std=torch.full_like(mean, self.config.init_std))

    def _proposals(
        self, history: History, generator: torch.Generator, warm_start: Tensor | None
    ) -> Float[Tensor, "envs samples horizon action"] | None:
        if self._proposal is None or not self.config.num_proposals:
            return None
        return self._clamped(
            self._proposal.propose(history, self.config.num_proposals, generator=generator, warm_start=warm_start)
        )

    def _clamped(self, actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        return actions if self._bounds is None else self._bounds.clamp(actions)


def first_mean(
    history: History,
    warm_start: Float[Tensor, "envs horizon action"] | None,
    *,
    horizon: int,
    action_dim: int,
    bounds: ActionBounds | None,
) -> Float[Tensor, "envs horizon action"]:
    """Return where a search begins: at the warm start, else in the middle of the box, else at 0.

    Args:
        history: What was seen.
        warm_start: Clamped to the box; ``None``: there is none.
        horizon: Actions of a plan.
        action_dim: Numbers of an action.
        bounds: The box; ``None``: actions may be anything.

    Raises:
        ConfigError: The warm start has another shape.
    """
    shape = (history.num_envs, horizon, action_dim)
    if warm_start is not None:
        if warm_start.shape != shape:
            raise ConfigError(
                f"a warm start of shape {list(warm_start.shape)}: must be [envs, horizon, action] = {list(shape)}"
            )
        return warm_start if bounds is None else bounds.clamp(warm_start)
    return history.states.new_zeros(shape) if bounds is None else bounds.middle.expand(shape)


def white_noise(
    law: SearchLaw, num_samples: int, *, generator: torch.Generator
) -> Float[Tensor, "envs samples horizon action"]:
    """Return standard normal numbers for some candidates of a law."""
    num_envs, horizon, action_dim = law.mean.shape
    return torch.randn((num_envs, num_samples, horizon, action_dim), generator=generator, dtype=law.mean.dtype).to(
        law.mean.device
    )


def fitted_to_elites(law: SearchLaw, elites: Candidates, *, momentum: float, min_std: float) -> SearchLaw:
    """Return a law with the mean and the (unbiased) standard deviation of the elites.

    Args:
        law: The law that they were drawn from.
        elites: At least two for each environment.
        momentum: Share of the old mean and standard deviation that stays.
        min_std: Least standard deviation.
    """
    mean = elites.actions.mean(dim=1).lerp(law.mean, momentum)
    std = elites.actions.std(dim=1).lerp(law.std, momentum).clamp(min=min_std)
    return replace(law, mean=mean, std=std)
