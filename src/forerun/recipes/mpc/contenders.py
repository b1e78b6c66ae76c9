"""Ways to control a task, by name: sample-score-rank in its forms, its parts alone, and what it is compared with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from forerun.core.config import unknown_name
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.core.protocols import Dynamics, Objective, Planner
from forerun.envs.control_dynamics import TrueDynamics
from forerun.envs.control_task import ControlTask, Policy
from forerun.planning.cem import Cem, CemConfig
from forerun.planning.controller import Controller, ControllerConfig
from forerun.planning.mppi import Mppi, MppiConfig
from forerun.planning.objective import ComposableObjective, FinalReward
from forerun.planning.random_shooting import RandomShooting
from forerun.planning.ssr import Ssr, SsrConfig
from forerun.planning.terms import TransitionReward
from forerun.worldmodels.diffusion.bundle import ModelBundle


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a way to control is made from.

    Attributes:
        task: The task.
        bundle: Its models.
        objective: What is wanted.
        num_samples: Candidates of a plan, for every planner.
        control: Options of the controller.
    """

    task: ControlTask
    bundle: ModelBundle
    objective: Objective
    num_samples: int = 64
    control: ControllerConfig = field(default_factory=ControllerConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A way to control.

    Attributes:
        summary: What the table says.
        planner: Builds its planner; ``None`` for a policy that plans nothing.
        policy: Builds its policy, where it has no planner.
    """

    summary: str
    planner: Callable[[Setting], Planner] | None = None
    policy: Callable[[Setting, int, int], Policy] | None = None

    def controller(self, setting: Setting) -> Controller:
        """Return a controller that drives its planner.

        Raises:
            ConfigError: It plans nothing.
        """
        if self.planner is None:
            raise ConfigError(f"{self.summary}: plans nothing; name a planner")
        return Controller(setting.control, planner=self.planner(setting), bounds=setting.bundle.bounds)


def task_objective(task: ControlTask, bundle: ModelBundle) -> ComposableObjective:
    """Return the task's own reward over the horizon, and what the data's value says of its end."""
    weight = bundle.config.discount**bundle.config.horizon
    running = TransitionReward(task.reward, discount=bundle.config.discount)
    return running + weight * FinalReward(bundle.state_value)


def contender(name: str) -> Contender:
    """Return a way to control.

    Args:
        name: A key of :data:`CONTENDERS`.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in CONTENDERS:
        raise unknown_name("planner", name, CONTENDERS)
    return CONTENDERS[name]


def _ssr(
    proposal: Literal["proposal", "cloning"],
    dynamics: Literal["dynamics", "one_step", "true"],
    *,
    scorer: Literal["objective", "plan_value"] = "objective",
    num_samples: int | None = None,
) -> Callable[[Setting], Planner]:
    """Return a builder of sample-score-rank from parts of the bundle; ``num_samples`` overrides the setting's."""

    def build(setting: Setting) -> Planner:
        bundle = setting.bundle
        return Ssr(
            SsrConfig(num_samples=num_samples or setting.num_samples),
            proposal=getattr(bundle, proposal),
            dynamics=_true_dynamics(setting) if dynamics == "true" else getattr(bundle, dynamics),
            objective=setting.objective if scorer == "objective" else bundle.plan_value,
            bounds=bundle.bounds,
        )

    return build


def _random(setting: Setting) -> Planner:
    bundle = setting.bundle
    return RandomShooting(
        SsrConfig(num_samples=setting.num_samples),
        horizon=bundle.config.horizon,
        dynamics=bundle.one_step,
        objective=setting.objective,
        bounds=bundle.bounds,
    )


def _mppi(setting: Setting) -> Planner:
    bundle = setting.bundle
    half = 0.5 * float((bundle.bounds.high - bundle.bounds.low).mean())
    config = MppiConfig(
        horizon=bundle.config.horizon,
        num_samples=setting.num_samples,
        num_iterations=2,
        init_std=0.4 * half,
        num_proposals=max(1, setting.num_samples // 2),
    )
    return Mppi(
        config,
        dynamics=bundle.one_step,
        objective=setting.objective,
        bounds=bundle.bounds,
        proposal=bundle.cloning,
    )


def _cem(setting: Setting) -> Planner:
    bundle = setting.bundle
    half = 0.5 * float((bundle.bounds.high - bundle.bounds.low).mean())
    config = CemConfig(
        horizon=bundle.config.horizon,
        num_samples=setting.num_samples,
        num_elites=max(2, setting.num_samples // 8),
        num_iterations=4,
        init_std=0.5 * half,
    )
    return Cem(config, dynamics=bundle.one_step, objective=setting.objective, bounds=bundle.bounds)


def _true_dynamics(setting: Setting) -> Dynamics:
    if setting.task.transition is None:
        raise ConfigError(f"{setting.task.name}: its equations are not known here; choose another planner")
    return TrueDynamics(setting.task.transition, bounds=setting.bundle.bounds)


def _best(setting: Setting, num_envs: int, seed: int) -> Policy:
    if setting.task.best_policy is None:
        raise ConfigError(f"{setting.task.name}: its optimum is not known; choose another planner")
    return setting.task.best_policy


def _behaviour(setting: Setting, num_envs: int, seed: int) -> Policy:
    return setting.task.behaviour(num_envs, keyed_generator(seed, "behaviour", "evaluation"))


CONTENDERS: Final[dict[str, Contender]] = {
    "data": Contender(summary="the data's behaviours", policy=_behaviour),
    "cloning": Contender(
        summary="behaviour cloning", planner=_ssr("cloning", "one_step", scorer="plan_value", num_samples=1)
    ),
    "proposal": Contender(
        summary="one sample of the proposal (Diffusion Policy)",
        planner=_ssr("proposal", "dynamics", scorer="plan_value", num_samples=1),
    ),
    "random": Contender(summary="random shooting, one-step dynamics", planner=_random),
    "cem": Contender(summary="CEM, one-step dynamics", planner=_cem),
    "mppi": Contender(summary="MPPI, one-step dynamics, cloned prior (MBOP-like)", planner=_mppi),
    "ssr-one-step": Contender(summary="SSR, one-step dynamics", planner=_ssr("proposal", "one_step")),
    "ssr-paper": Contender(
        summary="SSR as the paper: scored by J alone", planner=_ssr("proposal", "dynamics", scorer="plan_value")
    ),
    "ssr": Contender(
        summary="SSR: reward on predicted states + value of the end", planner=_ssr("proposal", "dynamics")
    ),
    "ssr-true": Contender(summary="SSR, true dynamics", planner=_ssr("proposal", "true")),
    "optimum": Contender(summary="known optimum", policy=_best),
}
"""Ways to control, in the order of the table."""
