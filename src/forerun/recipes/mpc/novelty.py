"""What D-MPC does without training: a new reward, a hard constraint, plans that are ready before they are needed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from forerun.core.errors import ConfigError
from forerun.data.trajectories import Trajectories
from forerun.envs.control_goals import MovedGoal
from forerun.planning.episodes import run_episodes
from forerun.planning.expression import ObjectiveLanguage
from forerun.planning.speculative import SpeculationConfig, SpeculationReport, SpeculativeController
from forerun.planning.statistics import interquartile_mean
from forerun.recipes.mpc.collect import episode_seeds
from forerun.recipes.mpc.contenders import (
    Setting,
    contender,
    end_value,
    running_reward,
    task_objective,
    unfamiliarity,
)
from forerun.recipes.mpc.evaluate import episodes_of, success_share
from forerun.recipes.mpc.studies import NewGoal

_WINDOW: Final = 20
"""Steps of a smoothed error: a second of HalfCheetah."""


def language(setting: Setting) -> ObjectiveLanguage:
    """Return the words of a task's objectives: ``task()`` is ``reward() + value()``, ``unfamiliar()`` a penalty."""
    task, bundle = setting.task, setting.bundle
    words = {
        "task": task_objective(task, bundle),
        "reward": running_reward(task, bundle),
        "value": end_value(bundle),
        "unfamiliar": unfamiliarity(bundle),
    }
    return ObjectiveLanguage(bundle.state_names, words)


def measure_new_goals(
    setting: Setting, *, goals: Sequence[NewGoal], num_episodes: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Ask for values of numbers of the state that the data never aimed at, and compare with the proposal alone.

    Args:
        setting: Task and models; its objective is replaced.
        goals: What is asked for.
        num_episodes: Episodes of each.
        seed: Of the starts.

    Yields:
        For each goal the mean absolute error over the second half of an episode, of SSR with the new objective and of
        the proposal; the same of means over a second of an episode, which a stride does not move; and for a goal with a
        tolerance, the share of an episode's full length in which it is met.
    """
    words = language(setting)
    drawn, _, _ = episodes_of("proposal", setting, num_episodes=num_episodes, seed=seed)
    for goal in goals:
        index = setting.bundle.state_names.index(goal.name)
        asked = replace(setting, objective=words.objective(goal.wish))
        steered, _, _ = episodes_of("ssr", asked, num_episodes=num_episodes, seed=seed)
        error, proposal_error = (_late_error(episodes, index, goal.value) for episodes in (steered, drawn))
        found = {
            "name": goal.name,
            "value": goal.value,
            "objective": goal.wish,
            "error": error,
            "proposal_error": proposal_error,
            "ratio": error / proposal_error,
            "smoothed_error": _late_error(steered, index, goal.value, window=_WINDOW),
            "smoothed_proposal_error": _late_error(drawn, index, goal.value, window=_WINDOW),
        }
        if goal.tolerance is not None:
            shares = [
                _met_share(episodes, index, goal.value, goal.tolerance, setting.task.num_steps)
                for episodes in (steered, drawn)
            ]
            found |= {"tolerance": goal.tolerance, "met_share": shares[0], "proposal_met_share": shares[1]}
        yield found


def measure_moved_goal(setting: Setting, *, num_episodes: int, seed: int) -> dict[str, Any]:
    """Move the goal in the middle of every episode, and say how many reach the new one in what is left.

    Args:
        setting: A task with a goal in its state, and its models.
        num_episodes: Episodes, at least two.
        seed: Of the starts.

    Raises:
        ConfigError: There is one episode only.
    """
    task = setting.task
    half = task.num_steps // 2
    env = MovedGoal(task.make_env(num_episodes), goal=task.goal, reward=task.reward, num_steps_before=half)
    episodes, _, _ = episodes_of("ssr", setting, num_episodes=num_episodes, seed=seed, env=env)
    reached = [bool(episode.rewards[half:].any()) for episode in episodes.episodes]
    return {"num_steps_left": task.num_steps - half, "success": float(np.mean(reached))}


def measure_constraint(
    setting: Setting, *, constraint: str, num_episodes: int, seed: int, without: Trajectories | None = None
) -> dict[str, Any]:
    """Plan the task under a hard constraint; count the steps that break it and the return, with and without.

    Args:
        setting: Task and models.
        constraint: As :class:`~forerun.planning.expression.ObjectiveLanguage` reads it.
        num_episodes: Episodes.
        seed: Of the starts.
        without: The same episodes without it, where they have been run; ``None``: they are run here.
    """
    limit = language(setting).constraint(constraint)
    constrained = replace(setting, objective=task_objective(setting.task, setting.bundle).subject_to(limit))
    found: dict[str, Any] = {"constraint": constraint}
    if without is None:
        without, _, _ = episodes_of("ssr", setting, num_episodes=num_episodes, seed=seed)
    kept, _, _ = episodes_of("ssr", constrained, num_episodes=num_episodes, seed=seed)
    for suffix, episodes in (("", kept), ("_without", without)):
        broken = np.concatenate([limit.violations(episode.states[None, 1:])[0] > 0 for episode in episodes.episodes])
        found[f"broken{suffix}"] = float(broken.mean())
        found[f"success{suffix}"] = success_share(setting.task, episodes)
        found[f"returns{suffix}"] = episodes.returns.tolist()
        found[f"return{suffix}"] = float(interquartile_mean(episodes.returns))
    return found


def measure_speculation(
    setting: Setting, *, num_episodes: int, seed: int, speculation: SpeculationConfig | None = None
) -> dict[str, Any]:
    """Run single episodes with plans made ahead, and the same without.

    Args:
        setting: Task, models, objective.
        num_episodes: Run one after the other, as latency is for one environment.
        seed: Of the starts and of planning.
        speculation: Guesses and tolerance.

    Returns:
        Hit rate, milliseconds from observation to action of hits and of misses, and both mean returns.

    Raises:
        ConfigError: There is no episode.
    """
    if num_episodes < 1:
        raise ConfigError(f"num_episodes={num_episodes}: must be at least 1")
    task = setting.task
    setting = replace(setting, control=replace(setting.control, seed=seed))
    controller = speculating("ssr", setting, speculation or SpeculationConfig())
    total, returns, plain_s, plain_returns = SpeculationReport(), [], [], []
    for one_seed in episode_seeds(seed, "speculation", num_episodes):
        controller.reset()
        env = task.make_env(1)
        episodes = run_episodes(
            env,
            controller.act,
            task=task,
            seeds=[one_seed],
            source="speculative",
            on_action=controller.anticipate,
        )
        total.add(controller.speculation_report)
        returns.append(float(episodes.returns[0]))
        plain = contender("ssr").controller(setting)
        episodes = run_episodes(task.make_env(1), plain.act, task=task, seeds=[one_seed], source="plain")
        plain_s += plain.report.plan_seconds
        plain_returns.append(float(episodes.returns[0]))
    return speculation_facts(total) | {
        "plan_ms": _median_ms(plain_s),
        "return": float(np.mean(returns)),
        "return_without": float(np.mean(plain_returns)),
    }


def speculating(way: str, setting: Setting, speculation: SpeculationConfig) -> SpeculativeController:
    """Return a controller that plans ahead with the planner of a way, for what the one-step ensemble expects.

    Of the next state alone the ensemble knows twice as much as a model of the whole horizon.

    Args:
        way: Its name.
        setting: Task, models, objective, options of the controller.
        speculation: Guesses and tolerance.

    Raises:
        ConfigError: The way plans nothing.
    """
    bundle = setting.bundle
    return SpeculativeController(
        setting.control,
        speculation=speculation,
        planner=contender(way).controller(setting).planner,
        dynamics=bundle.one_step,
        bounds=bundle.bounds,
        unit=bundle.dynamics.offsets.scale[0],
    )


def speculation_facts(report: SpeculationReport) -> dict[str, float | None]:
    """Return hit rate and median milliseconds of hits, misses and planning ahead; ``None`` where there is none."""
    return {
        "hit_rate": report.hit_rate,
        "hit_ms": _median_ms(report.hit_seconds),
        "miss_ms": _median_ms(report.miss_seconds),
        "ahead_ms": _median_ms(report.ahead_seconds),
    }


def _late_error(episodes: Trajectories, index: int, value: float, *, window: int = 1) -> float:
    """Return the mean absolute error of the means over ``window`` steps, in the second half of the episodes."""
    errors = []
    for episode in episodes.episodes:
        late = episode.states[len(episode.states) // 2 :, index]
        size = min(window, len(late))
        errors.append(np.abs(np.convolve(late, np.ones(size) / size, mode="valid") - value).mean())
    return float(np.mean(errors))


def _met_share(episodes: Trajectories, index: int, value: float, tolerance: float, num_steps: int) -> float:
    """Return the share of the steps that an episode may last in which a number is near a value."""
    met = [np.abs(episode.states[1:, index] - value) <= tolerance for episode in episodes.episodes]
    return float(np.mean([near.sum() / num_steps for near in met]))


def _median_ms(seconds: list[float]) -> float | None:
    return float(1e3 * np.median(seconds)) if seconds else None
