"""What D-MPC does without training: a new reward, a hard constraint, plans that are ready before they are needed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from forerun.core.errors import ConfigError
from forerun.data.trajectories import Trajectories
from forerun.planning.episodes import run_episodes
from forerun.planning.expression import ObjectiveLanguage
from forerun.planning.speculative import SpeculationConfig, SpeculativeController
from forerun.planning.statistics import interquartile_mean
from forerun.recipes.mpc.collect import episode_seeds
from forerun.recipes.mpc.contenders import Setting, contender, task_objective, unfamiliarity
from forerun.recipes.mpc.evaluate import episodes_of

_WINDOW: Final = 20
"""Steps of a smoothed error: a second of HalfCheetah."""


def language(setting: Setting) -> ObjectiveLanguage:
    """Return the words of objectives for a task: its own reward is ``task()``, and ``unfamiliar()`` a penalty."""
    words = {"task": task_objective(setting.task, setting.bundle), "unfamiliar": unfamiliarity(setting.bundle)}
    return ObjectiveLanguage(setting.bundle.state_names, words)


def measure_new_goals(
    setting: Setting, *, goals: Sequence[tuple[str, float]], num_episodes: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Ask for values of numbers of the state that the data never aimed at, and compare with the proposal alone.

    Args:
        setting: Task and models; its objective is replaced.
        goals: Number of the state, and what it shall be.
        num_episodes: Episodes of each.
        seed: Of the starts.

    Yields:
        For each goal the mean absolute error over the second half of an episode, of SSR with the new objective and of
        the proposal; and the same of means over a second of an episode, which a stride does not move.
    """
    words = language(setting)
    drawn, _, _ = episodes_of("proposal", setting, num_episodes=num_episodes, seed=seed)
    for name, value in goals:
        index = setting.bundle.state_names.index(name)
        wish = f"near({name}={value}) + 0.05 * energy()"
        asked = replace(setting, objective=words.objective(wish))
        steered, _, _ = episodes_of("ssr", asked, num_episodes=num_episodes, seed=seed)
        error, proposal_error = (_late_error(episodes, index, value) for episodes in (steered, drawn))
        yield {
            "name": name,
            "value": value,
            "objective": wish,
            "error": error,
            "proposal_error": proposal_error,
            "ratio": error / proposal_error,
            "smoothed_error": _late_error(steered, index, value, window=_WINDOW),
            "smoothed_proposal_error": _late_error(drawn, index, value, window=_WINDOW),
        }


def measure_constraint(setting: Setting, *, constraint: str, num_episodes: int, seed: int) -> dict[str, Any]:
    """Plan the task under a hard constraint; count the steps that break it and the return, with and without.

    Args:
        setting: Task and models.
        constraint: As :class:`~forerun.planning.expression.ObjectiveLanguage` reads it.
        num_episodes: Episodes.
        seed: Of the starts.
    """
    words = language(setting)
    limit = words.constraint(constraint)
    constrained = replace(setting, objective=task_objective(setting.task, setting.bundle).subject_to(limit))
    found: dict[str, Any] = {"constraint": constraint}
    for suffix, chosen in (("", constrained), ("_without", setting)):
        episodes, _, _ = episodes_of("ssr", chosen, num_episodes=num_episodes, seed=seed)
        states = np.stack([episode.states[1:] for episode in episodes.episodes])
        found[f"broken{suffix}"] = float((limit.violations(states) > 0).mean())
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
    means = np.ones(window) / window
    late = [episode.states[len(episode.states) // 2 :, index] for episode in episodes.episodes]
    return float(np.mean([np.abs(np.convolve(seen, means, mode="valid") - value).mean() for seen in late]))


def _median_ms(seconds: list[float]) -> float | None:
    return float(1e3 * np.median(seconds)) if seconds else None
