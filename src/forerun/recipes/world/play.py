"""Plays tasks to their end and counts, with an interval."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from forerun.envs.pixel_world import PixelWorld
from forerun.recipes.world.agents import Agent
from forerun.recipes.world.goal_tasks import GoalTasks

_Z95 = 1.959963984540054

BeforeLook = Callable[[Any, int], None]
"""Told (the worlds, blocks done) before the camera looks; may change the worlds."""


def undisturbed(world: PixelWorld, block: int) -> None:
    """Leave the worlds as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """What happened in some tasks.

    Attributes:
        is_success: Whether each goal was reached within the budget.
        frames: What the camera saw, at the start and after every block.
        positions: The state of each world then.
        cpu_s: CPU seconds of the agent, looking and planning.
    """

    is_success: Bool[np.ndarray, " tasks"]
    frames: UInt8[np.ndarray, "looks tasks height width 3"]
    positions: Float[np.ndarray, "looks tasks state"]
    cpu_s: float

    @property
    def success_rate(self) -> float:
        """Share of the goals that were reached."""
        return float(self.is_success.mean())


def play(
    tasks: GoalTasks,
    agent: Agent,
    *,
    before_look: BeforeLook = undisturbed,
    stops_at_goal: bool = True,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Played:
    """Let an agent act in all tasks side by side.

    Args:
        tasks: What to do.
        agent: Who does it.
        before_look: What disturbs the worlds.
        stops_at_goal: Whether a task whose goal is reached is over; else all of them go on to the end of the budget.
        report: Told (actions done, budget) after every block.
    """
    world, action_dim = tasks.worlds(), tasks.task.action_dim
    is_success = np.zeros(tasks.num_tasks, bool)
    frames, positions = [world.render(tasks.resolution)], [world.states]
    cpu_s = 0.0
    for done in range(0, tasks.budget_steps, tasks.frame_skip):
        active = np.flatnonzero(~is_success) if stops_at_goal else np.arange(tasks.num_tasks)
        if not len(active):
            break
        began = time.process_time()
        blocks = agent.act(world, frames[-1][active], active)
        cpu_s += time.process_time() - began
        for start in range(0, blocks.shape[1], action_dim):
            actions = np.zeros((tasks.num_tasks, action_dim))
            actions[active] = np.where(is_success[active, None], 0.0, blocks[:, start : start + action_dim])
            world.step(actions)
            is_success |= tasks.task.is_reached(world.states, tasks.goals)
        before_look(world, len(frames))
        frames.append(world.render(tasks.resolution))
        positions.append(world.states)
        report(done + tasks.frame_skip, tasks.budget_steps)
    return Played(is_success=is_success, frames=np.stack(frames), positions=np.stack(positions), cpu_s=cpu_s)


def wilson_interval(num_successes: int, num_tasks: int) -> tuple[float, float]:
    """Return the 95% interval of a rate.

    Reference:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    rate = num_successes / num_tasks
    spread = _Z95 * math.sqrt(rate * (1 - rate) / num_tasks + _Z95**2 / (4 * num_tasks**2))
    middle, scale = rate + _Z95**2 / (2 * num_tasks), 1 + _Z95**2 / num_tasks
    return (middle - spread) / scale, (middle + spread) / scale
