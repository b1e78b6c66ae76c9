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
from forerun.planning.speculative import SpeculationConfig, SpeculativeController
from forerun.planning.statistics import interquartile_mean
from forerun.recipes.mpc.collect import episode_seeds
from forerun.recipes.mpc.contenders import Setting, contender, task_objective, unfamiliarity
from forerun.recipes.mpc.evaluate import episodes_of, success_share
from forerun.recipes.mpc.studies import NewGoal

_WINDOW: Final = 20
"""Steps of a smoothed error: a second of HalfCheetah."""


def language(setting: Setting) -> ObjectiveLanguage:
    """Return the words of objectives for a task: its own reward is ``task()``, and ``unfamiliar()`` a penalty."""
    words = {"task": task_objective(setting.task, setting.bundle), "unfamiliar": unfamiliarity(setting.bundle)}
    return ObjectiveLanguage(setting.bundle.state_names, words)


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
    task, bundle = setting.task, setting.bundle
    control = replace(setting.control, seed=seed)
    planner_of = contender("ssr").planner
    assert planner_of is not None
    controller = SpeculativeController(
        control,
        speculation=speculation or SpeculationConfig(),
        planner=planner_of(setting),
        dynamics=bundle.dynamics,
        bounds=bundle.bounds,
        unit=bundle.dynamics.offsets.scale[0],
    )
    hits = misses = 0
    hit_s, miss_s, ahead_s, returns, plain_s, plain_returns = [], [], [], [], [], []
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
        report = controller.speculation_report
        hits, misses = hits + report.num_hits, misses + report.num_misses
        hit_s += report.hit_seconds
        miss_s += report.miss_seconds
        ahead_s += report.ahead_seconds
        returns.append(float(episodes.returns[0]))
        plain = contender("ssr").controller(replace(setting, control=control))
        episodes = run_episodes(task.make_env(1), plain.act, task=task, seeds=[one_seed], source="plain")
        plain_s += plain.report.plan_seconds
        plain_returns.append(float(episodes.returns[0]))
    return {
        "hit_rate": hits / max(1, hits + misses),
        "hit_ms": _median_ms(hit_s),
        "miss_ms": _median_ms(miss_s),
        "ahead_ms": _median_ms(ahead_s),
        "plan_ms": _median_ms(plain_s),
        "return": float(np.mean(returns)),
        "return_without": float(np.mean(plain_returns)),
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
