"""How a world model is planned with: options, and the planner that they describe."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from forerun.core.control import ActionBounds
from forerun.core.errors import ConfigError
from forerun.core.protocols import ActionProposal, Dynamics, Objective, Planner
from forerun.planning.cem import Cem, CemConfig
from forerun.planning.gradient import GradientConfig, GradientPlanner
from forerun.planning.icem import Icem, IcemConfig
from forerun.planning.mppi import Mppi, MppiConfig

PlannerName = Literal["cem", "icem", "mppi", "gradient"]
PLANNERS: Final[tuple[PlannerName, ...]] = ("cem", "icem", "mppi", "gradient")
GoalName = Literal["latent", "landmarks", "state"]
CostTime = Literal["last", "every"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """How a world model is planned with.

    Attributes:
        planner: How plans are searched for. ``cem``: as published. ``icem``: the same with noise that is smooth in time
            and elites that are kept. ``mppi``: weights instead of elites. ``gradient``: ascent on the actions.
        horizon: Blocks of actions in a plan.
        execute_horizon: Blocks executed before the next plan; the published evaluation executes all.
        num_context: Frames that a roll-out begins with, as far as so many were seen, with the actions between them; one
            as published. More of them show how fast things move, and matter where plans are made anew on the way.
        num_samples: Candidates of an iteration; of ``gradient``: beginnings.
        num_elites: Best ones that the next iteration is fitted to, or that have a weight.
        num_iterations: Iterations.
        returns: ``mean``: the last mean (published). ``best``: the best candidate that was ever scored.
        goal: ``latent``: squared distance to the goal's embedding (published). ``landmarks``: length of the way over a
            map of embeddings seen in training. ``state``: squared distance between what a head reads off both.
        cost_at: ``last``: the cost of a plan is that of its last state (published). ``every``: the sum over its states,
            so that a plan that is made anew after each block does not put off arriving. Not with ``landmarks``.
        is_bounded: Whether candidates stay inside the box of actions; not so in the published evaluation.
        has_warm_start: Whether a search begins at what is left of the last plan; of no use where all of it is executed.
        num_proposals: Guesses of an inverse model among the candidates; they need one, and no ``landmarks``.
        kappa: What disagreement costs where several models plan as one, in standard deviations of their costs.
        has_autocast: Whether matrix products of the roll-out run in bfloat16.
        deadline_s: Seconds after which a search ends with the best so far; ``None``: after all its iterations.
        seed: Root of chance.
    """

    planner: PlannerName = "cem"
    horizon: int = 5
    execute_horizon: int = 5
    num_context: int = 1
    num_samples: int = 300
    num_elites: int = 30
    num_iterations: int = 10
    returns: Literal["mean", "best"] = "mean"
    goal: GoalName = "latent"
    cost_at: CostTime = "last"
    is_bounded: bool = False
    has_warm_start: bool = False
    num_proposals: int = 0
    kappa: float = 0.0
    has_autocast: bool = False
    deadline_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what the planner itself does not.

        Raises:
            ConfigError: An option is out of range, or two don't go together.
        """
        if not 1 <= self.execute_horizon <= self.horizon:
            raise ConfigError(f"execute_horizon={self.execute_horizon}: must lie in [1, horizon={self.horizon}]")
        if self.num_proposals and self.planner == "gradient":
            raise ConfigError(
                f"num_proposals={self.num_proposals}: planner 'gradient' takes none; use one that searches"
            )
        if self.num_context < 1:
            raise ConfigError(f"num_context={self.num_context}: must be >= 1; the present frame is one")
        if self.cost_at == "every" and self.goal == "landmarks":
            raise ConfigError("cost_at='every': ways over a map are costs of a last state; leave it out with landmarks")
        if self.num_proposals and self.goal == "landmarks":
            raise ConfigError(
                f"num_proposals={self.num_proposals}: an inverse model guesses ways to near goals; leave it out with "
                f"goal={self.goal!r}"
            )
        if not 0 <= self.kappa < float("inf"):
            raise ConfigError(f"kappa={self.kappa}: must be finite and at least 0; 0 leaves disagreement out")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"deadline_s={self.deadline_s}: must be above 0 seconds, or None for no deadline")


def build_planner(
    config: PlanConfig,
    *,
    dynamics: Dynamics,
    objective: Objective,
    bounds: ActionBounds | None = None,
    proposal: ActionProposal | None = None,
) -> Planner:
    """Return the planner that the options describe.

    Args:
        config: The options.
        dynamics: Predicts.
        objective: Scores.
        bounds: Candidates are clamped to this box; ``None``: not at all.
        proposal: Gives ``config.num_proposals`` more candidates.

    Raises:
        ConfigError: An option is out of its range.
    """
    parts: dict[str, Any] = {"dynamics": dynamics, "objective": objective, "bounds": bounds}
    sizes = {name: getattr(config, name) for name in ("horizon", "num_samples", "num_iterations")}
    if config.planner == "gradient":
        return GradientPlanner(GradientConfig(**sizes), **parts)
    parts["proposal"] = proposal
    sizes |= {name: getattr(config, name) for name in ("num_elites", "returns", "num_proposals")}
    match config.planner:
        case "cem":
            return Cem(CemConfig(**sizes), **parts)
        case "icem":
            return Icem(IcemConfig(**sizes), **parts)
        case "mppi":
            return Mppi(MppiConfig(**sizes), **parts)
