"""How well a world model serves planning: success on held-out tasks, between floors and ceiling."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forerun.data.pixel_episodes import PixelEpisodes
from forerun.data.pixel_shards import PixelDataset
from forerun.recipes.world.agents import Agent, ExpertAgent, PlanConfig, PlanningAgent, RandomAgent
from forerun.recipes.world.goal_tasks import GoalTasks, Protocol, held_out_tasks
from forerun.recipes.world.play import Played, play, wilson_interval
from forerun.worldmodels.jepa.landmarks import LandmarkMap
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.probes import MlpProbe, r_squared

Report = Callable[[int, int, str], None]
"""Told (actions done, budget, who acts)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Success:
    """How often somebody reached the goal.

    Attributes:
        name: Who.
        protocol: In which tasks.
        num_successes: Goals reached, over all models of this name.
        num_tasks: Goals in all.
        cpu_s_per_plan: CPU seconds of one plan for one task; ``None`` for those who don't plan.
    """

    name: str
    protocol: Protocol
    num_successes: int
    num_tasks: int
    cpu_s_per_plan: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, with rate and 95% interval."""
        low, high = wilson_interval(self.num_successes, self.num_tasks)
        return {
            "name": self.name,
            "protocol": self.protocol,
            "num_successes": self.num_successes,
            "num_tasks": self.num_tasks,
            "success_rate": self.num_successes / self.num_tasks,
            "low": low,
            "high": high,
            "cpu_s_per_plan": self.cpu_s_per_plan,
        }

    def line(self) -> str:
        """Return the numbers on one line."""
        low, high = wilson_interval(self.num_successes, self.num_tasks)
        plan = "" if self.cpu_s_per_plan is None else f"   {self.cpu_s_per_plan:.2f} CPU-s a plan"
        return (
            f"{self.protocol:<9} {self.name:<24} {self.num_successes / self.num_tasks:6.1%}  "
            f"({low:.1%} to {high:.1%}, {self.num_successes} of {self.num_tasks}){plan}"
        )


def held_out_of(dataset: PixelDataset, manifest: Mapping[str, Any]) -> tuple[PixelEpisodes, PixelEpisodes]:
    """Return the episodes that a model learned from and those it never saw, of a dataset.

    Of its own training data, as the manifest says; of any other data, all episodes are held out, and those given to
    learn from serve for maps and galleries alone.
    """
    config = manifest["train_config"]
    return dataset.episodes.split(config["held_out_fraction"], seed=config["split_seed"])


def mlp_probe_r2(
    model: Jepa, seen: PixelEpisodes, held_out: PixelEpisodes, *, num_frames: int = 4000
) -> dict[str, float]:
    """Return the R² of each known quantity, read off held-out embeddings by a network fitted on training ones.

    Args:
        model: Embeds.
        seen: Fits.
        held_out: Measures.
        num_frames: Of each, at most, evenly over the episodes.
    """
    if not held_out.state_names:
        return {}
    (fit_latents, fit_targets), (latents, targets) = (
        _embedded(model, episodes, num_frames) for episodes in (seen, held_out)
    )
    values = r_squared(MlpProbe.fit(fit_latents, fit_targets)(latents), targets)
    return dict(zip(held_out.state_names, values.tolist(), strict=True))


def _embedded(model: Jepa, episodes: PixelEpisodes, num_frames: int) -> tuple[Tensor, Tensor]:
    rows = np.linspace(0, len(episodes.pixels) - 1, min(len(episodes.pixels), num_frames)).astype(int)
    return (
        model.encode_all(torch.from_numpy(episodes.pixels[rows])),
        torch.from_numpy(np.float32(episodes.states[rows])),
    )


def evaluate(
    models: Mapping[str, list[tuple[Jepa, PixelEpisodes]]],
    held_out: PixelEpisodes,
    protocol: Protocol,
    config: PlanConfig,
    *,
    num_tasks: int,
    frame_skip: int,
    seed: int = 0,
    report: Report = lambda done, total, detail: None,
) -> tuple[list[Success], dict[str, tuple[GoalTasks, Played, PlanningAgent]]]:
    """Let chance, models and the expert act in the same tasks.

    Args:
        models: For each name its models (one for each training seed) with the episodes for their maps.
        held_out: Where tasks come from.
        protocol: Which tasks.
        config: How models are planned with.
        num_tasks: For each model.
        frame_skip: Actions between two frames.
        seed: Draws the tasks; that of the planner is in ``config``.
        report: Progress.

    Returns:
        Success of each, and for the first model of each name what happened, for pictures.
    """
    tasks = held_out_tasks(held_out, protocol, num_tasks=num_tasks, frame_skip=frame_skip, seed=seed)
    rows = [_success("random", tasks, [_played(tasks, RandomAgent(tasks, seed=seed), "random", report)], None)]
    shown: dict[str, tuple[GoalTasks, Played, PlanningAgent]] = {}
    for name, group in models.items():
        games: list[Played] = []
        num_plans = 0
        for number, (model, seen) in enumerate(group):
            landmarks = LandmarkMap.of_episodes(model, seen) if config.goal == "landmarks" else None
            agent = PlanningAgent(model, tasks, replace(config, seed=config.seed + number), landmarks=landmarks)
            games.append(_played(tasks, agent, name, report))
            num_plans += sum(len(active) for active, _ in agent.plans)
            shown.setdefault(name, (tasks, games[-1], agent))
        rows.append(_success(name, tasks, games, sum(game.cpu_s for game in games) / max(1, num_plans)))
    rows.append(_success("expert", tasks, [_played(tasks, ExpertAgent(tasks), "expert", report)], None))
    return rows, shown


def _played(tasks: GoalTasks, agent: Agent, name: str, report: Report) -> Played:
    return play(tasks, agent, report=lambda done, total: report(done, total, f"{tasks.protocol}: {name}"))


def _success(name: str, tasks: GoalTasks, games: list[Played], cpu_s_per_plan: float | None) -> Success:
    outcomes = np.concatenate([game.is_success for game in games])
    return Success(
        name=name,
        protocol=tasks.protocol,
        num_successes=int(outcomes.sum()),
        num_tasks=len(outcomes),
        cpu_s_per_plan=cpu_s_per_plan,
    )
