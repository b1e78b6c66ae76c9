"""Ways to control a task, by name: sample-score-rank in its forms, its parts alone, and what it is compared with."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from forerun.core.config import unknown_name
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.core.protocols import Dynamics, Objective, Planner
from forerun.envs.control_dynamics import TrueDynamics
from forerun.envs.control_task import ControlTask, Policy
from forerun.envs.control_tasks import control_task
from forerun.planning.cem import Cem, CemConfig
from forerun.planning.controller import Controller, ControllerConfig
from forerun.planning.icem import Icem, IcemConfig
from forerun.planning.joint_ranking import JointRanking
from forerun.planning.mixed_proposal import MixedProposal
from forerun.planning.mppi import Mppi, MppiConfig
from forerun.planning.objective import ComposableObjective, FinalReward, PlanReward, WeightedSum
from forerun.planning.random_shooting import RandomShooting, UniformProposal
from forerun.planning.ssr import Ssr, SsrConfig
from forerun.planning.terms import LeastReturn, TransitionReward
from forerun.worldmodels.diffusion.action_proposal import ProposalOptions
from forerun.worldmodels.diffusion.bundle import ModelBundle
from forerun.worldmodels.diffusion.joint import JointDiffusion


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a way to control is made from.

    Attributes:
        task: The task.
        bundle: Its models.
        objective: What is wanted.
        num_samples: Candidates of a plan, for every planner.
        control: Options of the controller.
        joint: The baseline that draws actions and states together, where it was trained.
        true_dynamics: The world's own, for planners that are given it; ``None``: the healthy task's.
    """

    task: ControlTask
    bundle: ModelBundle
    objective: Objective
    num_samples: int = 64
    control: ControllerConfig = field(default_factory=ControllerConfig)
    joint: JointDiffusion | None = None
    true_dynamics: Dynamics | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A way to control.

    Attributes:
        summary: What the table says.
        planner: Builds its planner; ``None`` for a policy that plans nothing.
        policy: Builds its policy, where it has no planner.
        execute_horizon: Actions of a plan that are executed before the next one is made; ``None``: as the setting says.
    """

    summary: str
    planner: Callable[[Setting], Planner] | None = None
    policy: Callable[[Setting, int, int], Policy] | None = None
    execute_horizon: int | None = None

    def acting(self, setting: Setting, num_envs: int, seed: int) -> Policy:
        """Return its policy.

        Args:
            setting: Task and models.
            num_envs: Environments that it acts in.
            seed: Of its chance.

        Raises:
            ConfigError: It is no policy: it plans.
        """
        if self.policy is None:
            raise ConfigError(f"{self.summary}: plans; ask for its controller")
        return self.policy(setting, num_envs, seed)

    def controller(self, setting: Setting) -> Controller:
        """Return a controller that drives its planner.

        Raises:
            ConfigError: It plans nothing.
        """
        if self.planner is None:
            raise ConfigError(f"{self.summary}: plans nothing; name a planner")
        control = setting.control
        if self.execute_horizon is not None:
            control = replace(control, execute_horizon=self.execute_horizon)
        return Controller(control, planner=self.planner(setting), bounds=setting.bundle.bounds)


def opened(models: Path, *, num_samples: int = 64) -> Setting:
    """Return the setting of trained models: their task, for its own reward.

    Args:
        models: Folder of the models.
        num_samples: Candidates of a plan.

    Raises:
        CheckpointError: The folder holds no models.
    """
    bundle = ModelBundle.load(models)
    task = control_task(bundle.task)
    return Setting(
        task=task,
        bundle=bundle,
        objective=task_objective(task, bundle),
        num_samples=num_samples,
        control=ControllerConfig(history=bundle.config.history),
    )


def task_objective(task: ControlTask, bundle: ModelBundle) -> ComposableObjective:
    """Return the task's own reward over the horizon, and what the value says of its end: or of the way, if less."""
    if task.value_depths:
        return LeastReturn(task.reward, bundle.state_value, discount=bundle.config.discount, depths=task.value_depths)
    return running_reward(task, bundle) + end_value(bundle)


def running_reward(task: ControlTask, bundle: ModelBundle) -> ComposableObjective:
    """Return the task's own reward over the horizon, discounted as the values are."""
    return TransitionReward(task.reward, discount=bundle.config.discount)


def end_value(bundle: ModelBundle) -> ComposableObjective:
    """Return what the data's value says of the horizon's end, discounted to the present."""
    return bundle.config.discount**bundle.config.horizon * FinalReward(bundle.state_value)


def unfamiliarity(bundle: ModelBundle) -> PlanReward:
    """Return how unlike the data a plan and its future are: a penalty, to be subtracted."""
    return PlanReward(
        lambda history, states, actions: (
            bundle.proposal.unfamiliarity(history, actions) + bundle.dynamics.unfamiliarity(history, states, actions)
        )
    )


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


def ssr_way(
    proposal: Literal["proposal", "cloning"] = "proposal",
    dynamics: Literal["dynamics", "one_step", "true"] = "dynamics",
    *,
    scorer: Literal["objective", "plan_value"] = "objective",
    steps: tuple[int, int] | None = None,
    options: ProposalOptions | None = None,
    unfamiliar_weight: float = 0.0,
    **overrides: Any,
) -> Callable[[Setting], Planner]:
    """Return a builder of sample-score-rank from parts of the bundle.

    Args:
        proposal: Draws plans.
        dynamics: Imagines.
        scorer: Ranks.
        steps: Denoising steps of proposal and dynamics; ``None``: as the bundle's.
        options: Of the diffusion proposal, instead of ``steps``.
        unfamiliar_weight: Of :func:`unfamiliarity`, subtracted from an objective that composes.
        overrides: Options of :class:`~forerun.planning.ssr.SsrConfig`; the setting's number of samples otherwise.
    """

    def build(setting: Setting) -> Planner:
        bundle = setting.bundle if steps is None else with_steps(setting.bundle, *steps)
        if options is not None:
            bundle = replace(bundle, proposal=bundle.proposal.with_options(options))
        objective = setting.objective if scorer == "objective" else bundle.plan_value
        if unfamiliar_weight:
            if not isinstance(objective, ComposableObjective):
                raise ConfigError("a penalty for unfamiliar plans: can't be added to an objective with constraints")
            objective = WeightedSum([(1.0, objective), (-unfamiliar_weight, unfamiliarity(bundle))])
        config = SsrConfig(**({"num_samples": setting.num_samples} | overrides))
        drawn = getattr(bundle, proposal)
        if setting.task.blind_share and proposal == "proposal":
            blind = UniformProposal(bundle.bounds, horizon=bundle.config.horizon)
            drawn = MixedProposal(drawn, blind, share=setting.task.blind_share)
        return Ssr(
            config,
            proposal=drawn,
            dynamics=true_dynamics(setting) if dynamics == "true" else getattr(bundle, dynamics),
            objective=objective,
            bounds=bundle.bounds,
            preview=bundle.one_step if config.num_previewed else None,
        )

    return build


def with_steps(bundle: ModelBundle, num_proposal_steps: int, num_dynamics_steps: int) -> ModelBundle:
    """Return the same models, weights shared, with other numbers of denoising steps, all of them from pure noise.

    Args:
        bundle: The models.
        num_proposal_steps: Of the proposal.
        num_dynamics_steps: Of the dynamics.
    """
    proposal, dynamics = (
        replace(model.diffusion.sampler_config, num_inference_steps=count)
        for model, count in ((bundle.proposal, num_proposal_steps), (bundle.dynamics, num_dynamics_steps))
    )
    return replace(
        bundle,
        proposal=bundle.proposal.with_options(ProposalOptions(sampler=proposal)),
        dynamics=bundle.dynamics.with_sampler(dynamics),
    )


def _joint(setting: Setting) -> Planner:
    if setting.joint is None:
        raise ConfigError("joint: there is no joint model here; the studies that adapt train one")
    return JointRanking(
        setting.joint,
        objective=setting.objective,
        num_samples=setting.num_samples,
        bounds=setting.bundle.bounds,
    )


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
    config = CemConfig(**_search_options(setting))
    bundle = setting.bundle
    return Cem(config, dynamics=bundle.one_step, objective=setting.objective, bounds=bundle.bounds)


def _icem(setting: Setting) -> Planner:
    config = IcemConfig(**_search_options(setting))
    bundle = setting.bundle
    return Icem(config, dynamics=bundle.one_step, objective=setting.objective, bounds=bundle.bounds)


def _search_options(setting: Setting) -> dict[str, Any]:
    """Return the options that CEM and iCEM share."""
    bounds = setting.bundle.bounds
    half = 0.5 * float((bounds.high - bounds.low).mean())
    return {
        "horizon": setting.bundle.config.horizon,
        "num_samples": setting.num_samples,
        "num_elites": max(2, setting.num_samples // 8),
        "num_iterations": 4,
        "init_std": 0.5 * half,
    }


def true_dynamics(setting: Setting) -> Dynamics:
    """Return the world's own dynamics: what the setting gives, the task's equations, or its simulator.

    Raises:
        ConfigError: None of them is there.
        MissingDependencyError: The simulator is not installed.
    """
    if setting.true_dynamics is not None:
        return setting.true_dynamics
    if setting.task.transition is not None:
        return TrueDynamics(setting.task.transition, bounds=setting.bundle.bounds)
    if setting.task.simulator is not None:
        return setting.task.simulator()
    raise ConfigError(
        f"{setting.task.name}: neither its equations nor its simulator are known here; choose another planner"
    )


def _best(setting: Setting, num_envs: int, seed: int) -> Policy:
    if setting.task.best_policy is None:
        raise ConfigError(f"{setting.task.name}: its optimum is not known; choose another planner")
    return setting.task.best_policy


def _behaviour(setting: Setting, num_envs: int, seed: int) -> Policy:
    return setting.task.behaviour(num_envs, keyed_generator(seed, "behaviour", "evaluation"))


CONTENDERS: Final[dict[str, Contender]] = {
    "data": Contender(summary="the data's behaviours", policy=_behaviour),
    "cloning": Contender(
        summary="behaviour cloning", planner=ssr_way("cloning", "one_step", scorer="plan_value", num_samples=1)
    ),
    "proposal": Contender(
        summary="one sample of the proposal (Diffusion Policy)", planner=ssr_way(scorer="plan_value", num_samples=1)
    ),
    "random": Contender(summary="random shooting, one-step dynamics", planner=_random),
    "cem": Contender(summary="CEM, one-step dynamics", planner=_cem),
    "icem": Contender(summary="iCEM, one-step dynamics", planner=_icem),
    "mppi": Contender(summary="MPPI, one-step dynamics, cloned prior (MBOP-like)", planner=_mppi),
    "joint": Contender(summary="joint model of actions and states, ranked (as Diffuser)", planner=_joint),
    "ssr-one-step": Contender(summary="SSR, one-step dynamics", planner=ssr_way(dynamics="one_step")),
    "ssr-paper": Contender(summary="SSR as the paper: scored by J alone", planner=ssr_way(scorer="plan_value")),
    "ssr": Contender(summary="SSR: reward on predicted states + value of the end", planner=ssr_way()),
    "ssr-2-2": Contender(summary="SSR, 2 and 2 denoising steps", planner=ssr_way(steps=(2, 2))),
    "ssr-8-8": Contender(summary="SSR, 8 and 8 denoising steps", planner=ssr_way(steps=(8, 8))),
    "ssr-warm": Contender(
        summary="SSR, half the plans near the last one", planner=ssr_way(options=ProposalOptions(warm_share=0.5))
    ),
    "ssr-careful": Contender(summary="SSR, 4 futures, mean - std", planner=ssr_way(num_futures=4, risk_aversion=1.0)),
    "ssr-cvar": Contender(
        summary="SSR, 4 futures, mean of the worse half", planner=ssr_way(num_futures=4, worst_share=0.5)
    ),
    "ssr-familiar": Contender(summary="SSR, unfamiliar plans penalised", planner=ssr_way(unfamiliar_weight=1.0)),
    "ssr-refine": Contender(
        summary="SSR, 32 plans, 32 near the best 8", planner=ssr_way(num_samples=32, num_refinements=1)
    ),
    "ssr-preview": Contender(
        summary="SSR, 16 plans, the best of 64 by one-step dynamics", planner=ssr_way(num_samples=16, num_previewed=64)
    ),
    "ssr-16": Contender(summary="SSR, 16 plans", planner=ssr_way(num_samples=16)),
    "ssr-chunk": Contender(summary="SSR, 4 actions of each plan", planner=ssr_way(), execute_horizon=4),
    "ssr-true": Contender(summary="SSR, true dynamics", planner=ssr_way(dynamics="true")),
    "optimum": Contender(summary="known optimum", policy=_best),
}
"""Ways to control, in the order of the table."""
