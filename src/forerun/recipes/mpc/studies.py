"""The studies that have a name: what is collected, trained and compared for a task."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from forerun.core.config import unknown_name
from forerun.core.errors import ConfigError
from forerun.recipes.mpc.contenders import CONTENDERS
from forerun.worldmodels.diffusion.config import ScaleName


@dataclass(frozen=True, kw_only=True, slots=True)
class NewGoal:
    """A value that a number of the state is asked to have, at run time.

    Attributes:
        name: Of the number.
        value: What it shall be.
        objective: What the planner is told, as :class:`~forerun.planning.expression.ObjectiveLanguage` reads it;
            ``None``: to be near the value, and a little to save effort.
        tolerance: How near counts as met; the bar is then on the share of an episode in which it is. ``None``: the bar
            is on the error, against the proposal's.
    """

    name: str
    value: float
    objective: str | None = None
    tolerance: float | None = None

    @property
    def wish(self) -> str:
        """What the planner is told."""
        return self.objective or f"near({self.name}={self.value}) + 0.05 * energy()"


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What is done for a task; the defaults are those of a quick one.

    Attributes:
        task: Its name.
        scale: Of the models.
        num_train_steps: Optimiser steps of each model.
        batch_size: Windows of a step.
        num_seeds: Data sets and trainings.
        num_episodes: Evaluated for each of them.
        ways: Ways to control that are compared.
        new_goals: What is asked of numbers of the state at run time.
        constraint: A hard constraint that is imposed at run time; ``None``: none.
        num_play_episodes: Of each of the task's damages, to adapt on; 0 leaves them out.
        num_adapt_rounds: Rounds of tuning on them, at most.
        largest_regret: Against the known optimum; ``None`` where there is none.
        least_return: What SSR is to reach; ``None``: nothing in particular.
        least_success: Share of SSR's episodes that are to succeed; ``None`` where there is no success.
        plain_way: Way whose return and speed the accelerations of SSR are measured against; ``None``: they are not.
        least_plans_per_s: Of SSR, for one environment on one core; ``None``: any.
    """

    task: str
    scale: ScaleName = "smoke"
    num_train_steps: int = 600
    batch_size: int = 128
    num_seeds: int = 1
    num_episodes: int = 20
    ways: tuple[str, ...] = ("data", "cloning", "proposal", "ssr-paper", "ssr")
    new_goals: tuple[NewGoal, ...] = ()
    constraint: str | None = None
    num_play_episodes: int = 0
    num_adapt_rounds: int = 6
    largest_regret: float | None = None
    least_return: float | None = None
    least_success: float | None = None
    plain_way: str | None = None
    least_plans_per_s: float | None = None

    def __post_init__(self) -> None:
        if min(self.num_seeds, self.num_episodes, self.num_train_steps) < 1:
            raise ConfigError(
                f"num_seeds={self.num_seeds}, num_episodes={self.num_episodes}, num_train_steps="
                f"{self.num_train_steps}: must be at least 1"
            )
        if self.num_episodes < 2:
            raise ConfigError(f"num_episodes={self.num_episodes}: intervals need at least 2")

    def as_json(self) -> dict[str, Any]:
        """Return every option as JSON types."""
        return asdict(self)


_BASELINES: Final = ("data", "cloning", "proposal", "random", "mppi")
STUDIES: Final[dict[str, Study]] = {
    "smoke": Study(
        task="double-integrator",
        ways=(*_BASELINES, "joint", "ssr-paper", "ssr", "ssr-true", "optimum"),
        new_goals=(NewGoal(name="position", value=0.4),),
        constraint="keep_out(velocity=(-2.0, -0.15))",
        num_play_episodes=40,
        num_adapt_rounds=3,
        largest_regret=0.25,
    ),
    "pendulum": Study(
        task="pendulum",
        num_train_steps=1500,
        ways=tuple(CONTENDERS),
        num_play_episodes=60,
        largest_regret=0.25,
    ),
    "pointmaze": Study(
        task="pointmaze",
        scale="small",
        num_train_steps=2400,
        batch_size=256,
        ways=(*_BASELINES, "joint", "ssr-paper", "ssr", "ssr-one-step"),
        constraint="keep_out(x=(-1.0, 0.0), y=(0.4, 0.7))",
        num_play_episodes=60,
        least_success=0.95,
    ),
    "halfcheetah-quick": Study(task="halfcheetah", num_episodes=4, new_goals=(NewGoal(name="x_velocity", value=0.5),)),
    "halfcheetah": Study(
        task="halfcheetah",
        scale="small",
        num_train_steps=3000,
        batch_size=256,
        ways=(
            "data",
            "cloning",
            "proposal",
            "ssr",
            "ssr-2-2",
            "ssr-paper",
            "ssr-one-step",
            "ssr-true",
            "joint",
            "random",
            "mppi",
            "ssr-8-8",
        ),
        new_goals=tuple(NewGoal(name="x_velocity", value=value) for value in (0.5, 1.5, 3.0)),
        constraint="keep_in(pitch=(-0.7, 0.7))",
        num_play_episodes=100,
        least_return=1.15 * 871,
        plain_way="ssr-8-8",
        least_plans_per_s=60,
    ),
    "walker2d": Study(
        task="walker2d",
        scale="small",
        num_train_steps=3000,
        batch_size=256,
        num_episodes=10,
        ways=(*_BASELINES, "joint", "ssr-paper", "ssr"),
        new_goals=(
            NewGoal(name="height", value=1.15, objective="0.2 * task() + 20 * near(height=1.15)", tolerance=0.05),
        ),
        num_play_episodes=60,
    ),
    "push": Study(
        task="push",
        scale="small",
        num_train_steps=2000,
        batch_size=256,
        ways=(*_BASELINES, "joint", "ssr-paper", "ssr", "ssr-one-step"),
        constraint="keep_out(hand_x=(-0.05, 0.05), hand_y=(0.70, 0.78), hand_z=(0.0, 0.12))",
        least_success=0.9,
    ),
}
"""Studies by the name the command line gives them."""


def study(name: str) -> Study:
    """Return a study.

    Args:
        name: A key of :data:`STUDIES`.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    return STUDIES[name]
