"""Episodes of one controller as a user runs it: watched for drift, planned in a thread, or by a distilled policy."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.core.protocols import Planner
from forerun.data.trajectories import Episode, Trajectories
from forerun.envs.control_env import BatchEnv
from forerun.envs.control_task import Policy
from forerun.planning.adaptation import Adapt, AdaptationConfig, AdaptiveController, Experience
from forerun.planning.asynchronous import AsynchronousController
from forerun.planning.drift_watch import DriftWatch, PredictionError
from forerun.planning.episodes import run_episodes
from forerun.planning.speculative import SpeculationConfig
from forerun.recipes.mpc.adapt import AdaptConfig, adapt
from forerun.recipes.mpc.collect import episode_seeds
from forerun.recipes.mpc.contenders import Setting, contender
from forerun.recipes.mpc.distill import Distilled, Supervisor
from forerun.recipes.mpc.novelty import speculating, speculation_facts
from forerun.worldmodels.diffusion.bundle import ModelBundle


@dataclass(frozen=True, kw_only=True, slots=True)
class ActConfig:
    """Who acts, and who watches.

    Attributes:
        way: Name of the way to control.
        distilled: A policy that acts instead; ``None``: the way does.
        is_supervised: Whether the way plans where the policy is not sure.
        healthy: A recording of the healthy world, to watch for drift by; ``None``: nobody watches.
        step_s: Seconds of a step: the way plans in a thread of its own while they pass; ``None``: the world waits.
        num_guesses: Next observations that are planned for while an action runs; ``None``: none.
        adapts_after: Steps to record after the first alarm; the dynamics are then tuned on them and act from there on.
            ``None``: an alarm is only told.
        tuning: How they are tuned.
    """

    way: str = "ssr"
    distilled: Distilled | None = None
    is_supervised: bool = False
    healthy: Trajectories | None = None
    step_s: float | None = None
    num_guesses: int | None = None
    adapts_after: int | None = None
    tuning: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        if self.adapts_after is not None and (self.healthy is None or self.distilled is not None or self.step_s):
            raise ConfigError(
                f"adapting after {self.adapts_after} steps: needs a recording of the healthy world, and a "
                "planner that the world waits for"
            )
        if self.step_s is not None and (not self.step_s > 0 or self.distilled is not None):
            raise ConfigError(
                f"a step of {self.step_s} s: must be above 0, and goes with a planner, not with a distilled policy"
            )
        others = (self.distilled, self.step_s, self.adapts_after)
        if self.num_guesses is not None and any(other is not None for other in others):
            raise ConfigError(
                f"planning ahead for {self.num_guesses} guesses: goes with a planner that the world waits for, and "
                "whose dynamics stay"
            )
        if self.is_supervised and self.distilled is None:
            raise ConfigError("supervision: needs a distilled policy to supervise")


@dataclass(frozen=True, kw_only=True, slots=True)
class Acted:
    """What came of it.

    Attributes:
        episodes: The episodes.
        cpu_seconds: Of everything.
        facts: What else was counted, as JSON types: failed, late, shortened and infeasible plans, share of planned
            steps, hits of plans made ahead, steps of alarms, the step at which tuned dynamics took over.
    """

    episodes: Trajectories
    cpu_seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


def prediction_error(bundle: ModelBundle, *, seed: int = 0) -> PredictionError:
    """Return how wrong the models' dynamics is, in units of a typical change in one step."""
    return PredictionError(bundle.dynamics, unit=bundle.dynamics.offsets.scale[0], seed=seed)


def tuned_planner(way: str, setting: Setting, healthy: Trajectories, tuning: AdaptConfig) -> Adapt:
    """Return what answers an alarm: the way's planner with dynamics tuned on what was seen since.

    Args:
        way: Name of the way.
        setting: Task, models, objective; not changed.
        healthy: Mixed in, against forgetting.
        tuning: How.
    """

    def adapted(seen: Experience) -> Planner:
        states, actions = (part.numpy(force=True).astype(np.float32) for part in (seen.states, seen.actions))
        episodes = [
            Episode(states=ours, actions=done, rewards=np.zeros(len(done), np.float32), terminated=False)
            for ours, done in zip(states, actions, strict=True)
        ]
        play = replace(healthy, episodes=tuple(episodes), source="what was seen since the alarm")
        found = adapt(setting.bundle, play, replay=healthy, config=tuning)
        return contender(way).controller(replace(setting, bundle=found.bundle)).planner

    return adapted


def act_episodes(
    setting: Setting, config: ActConfig, *, num_episodes: int, seed: int, env: BatchEnv | None = None
) -> Acted:
    """Run episodes on the starts of evaluation.

    Args:
        setting: Task, models, objective.
        config: Who acts.
        num_episodes: Side by side.
        seed: Of the starts and of planning.
        env: Another version of the task with that many environments; ``None``: the task's own.

    Raises:
        ConfigError: The way can't do what is asked of it.
    """
    task = setting.task
    setting = replace(setting, control=replace(setting.control, seed=seed))
    watch = None
    if config.healthy is not None:
        watch = DriftWatch(prediction_error(setting.bundle, seed=seed), config.healthy, num_envs=num_episodes)
    facts: dict[str, Any] = {"num_failed": 0}
    chosen = contender(config.way)
    with ExitStack() as stack:
        act: Policy
        controller = supervisor = adaptive = ahead = None
        if config.distilled is not None:
            planner = chosen.controller(setting).planner if config.is_supervised else None
            supervisor = Supervisor(config.distilled, planner=planner, seed=seed)
            act = supervisor.act
        elif config.num_guesses is not None:
            controller = ahead = speculating(config.way, setting, SpeculationConfig(num_guesses=config.num_guesses))
            act = controller.act
        elif chosen.policy is not None:
            act = chosen.acting(setting, num_episodes, seed)
        elif config.step_s is None:
            controller = chosen.controller(setting)
            act = controller.act
            if config.adapts_after is not None and watch is not None and config.healthy is not None:
                adaptive = AdaptiveController(
                    AdaptationConfig(num_steps=config.adapts_after),
                    controller=controller,
                    watch=watch,
                    adapt=tuned_planner(config.way, setting, config.healthy, config.tuning),
                )
                act = adaptive.act
        else:
            controller = stack.enter_context(
                AsynchronousController(
                    setting.control,
                    planner=chosen.controller(setting).planner,
                    bounds=setting.bundle.bounds,
                    dynamics=setting.bundle.one_step,
                )
            )
            act = controller.act
        told = watch if adaptive is None else None  # an adaptive controller tells its watch itself
        step_s, began = config.step_s or 0.0, time.process_time()

        def while_acting() -> None:
            if ahead is not None:
                ahead.anticipate()
            # The simulated world has no time of its own: a step lasts as long as the action would run.
            time.sleep(step_s)

        def watched(states: Float[Tensor, "envs state"], env_step: int, /) -> Float[Tensor, "envs action"]:
            if told is not None:
                told.observe(states)
            actions = task.bounds.clamp(act(states, env_step))
            if told is not None:
                told.expect(states, actions)
            return actions

        episodes = run_episodes(
            env or task.make_env(num_episodes),
            watched,
            task=task,
            seeds=episode_seeds(seed, "evaluation", num_episodes),
            source=f"{task.name}, {config.way}, seed {seed}",
            on_action=while_acting,
        )
        seconds = time.process_time() - began
    if controller is not None:
        kept = ("num_failed", "num_late", "num_cut_short", "num_infeasible", "last_error")
        facts |= {name: getattr(controller.report, name) for name in kept}
    if ahead is not None:
        facts["speculation"] = speculation_facts(ahead.speculation_report)
    if supervisor is not None:
        facts["planned_share"] = supervisor.num_planned / max(1, supervisor.num_acted)
    if watch is not None:
        facts["alarms"] = watch.alarms
    if adaptive is not None:
        facts["adapted_at"] = adaptive.adapted_at
    return Acted(episodes=episodes, cpu_seconds=seconds, facts=facts)
