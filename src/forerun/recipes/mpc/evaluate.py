"""Episodes of several ways to control, on the same starts, with what they cost."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from forerun.data.trajectories import Trajectories
from forerun.envs.control_env import BatchEnv
from forerun.envs.control_task import ControlTask, Policy
from forerun.planning.episodes import run_episodes
from forerun.planning.statistics import Estimate, estimate, paired_difference
from forerun.recipes.mpc.collect import episode_seeds
from forerun.recipes.mpc.contenders import Contender, Setting, contender


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What one way to control reached.

    Attributes:
        name: Its key.
        summary: In words.
        returns: For each training seed, the return of every episode.
        interval: Their interquartile mean with a 95% interval.
        successes: For each training seed, the share of episodes that succeeded; ``None`` for tasks without success.
        plan_cpu_ms: CPU milliseconds of a plan for one environment, episode and all.
        num_failed: Plans that an error prevented.
    """

    name: str
    summary: str
    returns: tuple[Float[np.ndarray, " episodes"], ...]
    interval: Estimate
    plan_cpu_ms: float
    num_failed: int
    successes: tuple[float, ...] | None = None

    @property
    def success(self) -> float | None:
        """Share of all episodes that succeeded; ``None`` for tasks without success."""
        return None if self.successes is None else float(np.mean(self.successes))

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "name": self.name,
            "summary": self.summary,
            "return": self.interval.value,
            "low": self.interval.low,
            "high": self.interval.high,
            "plan_cpu_ms": self.plan_cpu_ms,
            "num_failed": self.num_failed,
            "success": self.success,
            "successes": self.successes,
            "returns": [group.tolist() for group in self.returns],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Score":
        """Return the score that :meth:`as_json` wrote."""
        returns = tuple(np.array(group) for group in record["returns"])
        successes = record.get("successes")
        return cls(
            name=record["name"],
            summary=record["summary"],
            returns=returns,
            interval=estimate(returns),
            plan_cpu_ms=record["plan_cpu_ms"],
            num_failed=record["num_failed"],
            successes=None if successes is None else tuple(successes),
        )

    def beside(self, ours: "Score", optimum: "Score | None") -> dict[str, Any]:
        """Return everything as JSON types, with how far ``ours`` is ahead and what is lost against an optimum.

        Args:
            ours: On the same starts.
            optimum: On the same starts; ``None``: none is known.
        """
        return self.as_json() | {
            "ours_ahead": paired_difference(ours.returns, self.returns).as_json(),
            "regret": None if optimum is None else self.regret(optimum),
        }

    def regret(self, optimum: "Score") -> float:
        """Return what is lost against the optimum, as a share of the optimum's size; means, as regret adds up."""
        best = float(np.concatenate(optimum.returns).mean())
        return (best - float(np.concatenate(self.returns).mean())) / abs(best)


def success_share(task: ControlTask, episodes: Trajectories) -> float | None:
    """Return the share of episodes with a state that the task is about; ``None`` for tasks without success."""
    has_succeeded = task.has_succeeded
    if has_succeeded is None:
        return None
    return float(np.mean([bool(has_succeeded(torch.from_numpy(made.states)).any()) for made in episodes.episodes]))


def timed_episodes(
    task: ControlTask, act: Policy, *, num_episodes: int, seed: int, source: str, env: BatchEnv | None = None
) -> tuple[Trajectories, float]:
    """Run episodes on the starts of evaluation.

    Args:
        task: What to do.
        act: Acts.
        num_episodes: Side by side.
        seed: Of the starts.
        source: What the recording is called.
        env: Another version of the task with that many environments; ``None``: the task's own.

    Returns:
        The episodes, and CPU seconds.
    """
    env = env or task.make_env(num_episodes)
    seeds = episode_seeds(seed, "evaluation", num_episodes)
    began = time.process_time()
    episodes = run_episodes(env, act, task=task, seeds=seeds, source=source)
    return episodes, time.process_time() - began


def episodes_of(
    way: str | Contender, setting: Setting, *, num_episodes: int, seed: int, env: BatchEnv | None = None
) -> tuple[Trajectories, float, int]:
    """Run episodes of one way to control.

    Args:
        way: Its name, or the way itself.
        setting: Task, models, objective.
        num_episodes: Side by side.
        seed: Of the starts and of planning.
        env: Another version of the task with that many environments; ``None``: the task's own.

    Returns:
        The episodes, CPU seconds, and plans that failed.
    """
    chosen = contender(way) if isinstance(way, str) else way
    setting = replace(setting, control=replace(setting.control, seed=seed))
    controller = None if chosen.policy is not None else chosen.controller(setting)
    act = controller.act if controller is not None else chosen.acting(setting, num_episodes, seed)
    episodes, seconds = timed_episodes(
        setting.task, act, num_episodes=num_episodes, seed=seed, source=chosen.summary, env=env
    )
    return episodes, seconds, 0 if controller is None else controller.report.num_failed


def score(
    name: str,
    settings: Sequence[Setting],
    *,
    num_episodes: int,
    make_env: Callable[[int], BatchEnv] | None = None,
    on_episodes: Callable[[Trajectories], None] = lambda episodes: None,
) -> Score:
    """Score one way to control.

    Args:
        name: Of the way.
        settings: One for each training seed; its place is the seed of the episodes too.
        num_episodes: For each of them.
        make_env: Makes another version of the task; ``None``: the task's own.
        on_episodes: Given the episodes of each seed.
    """
    groups, successes, cpu_seconds, num_steps, num_failed = [], [], 0.0, 0, 0
    for seed, setting in enumerate(settings):
        env = None if make_env is None else make_env(num_episodes)
        episodes, seconds, failed = episodes_of(name, setting, num_episodes=num_episodes, seed=seed, env=env)
        on_episodes(episodes)
        groups.append(episodes.returns)
        successes.append(success_share(setting.task, episodes))
        cpu_seconds, num_failed = cpu_seconds + seconds, num_failed + failed
        num_steps += episodes.num_steps
    return Score(
        name=name,
        summary=contender(name).summary,
        returns=tuple(groups),
        interval=estimate(groups),
        plan_cpu_ms=1e3 * cpu_seconds / num_steps,
        num_failed=num_failed,
        successes=None if None in successes else tuple(successes),
    )
