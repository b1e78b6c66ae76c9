"""Plays tasks to their end and counts, with an interval."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from forerun.envs.two_room import SUCCESS_RADIUS, TwoRoom
from forerun.recipes.world.agents import Agent
from forerun.recipes.world.goal_tasks import GoalTasks

_Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """What happened in some tasks.

    Attributes:
        is_success: Whether each goal was reached within the budget.
        frames: What the camera saw, at the start and after every block.
        positions: Where each disc was then.
        cpu_s: CPU seconds of the agent, looking and planning.
    """

    is_success: Bool[np.ndarray, " tasks"]
    frames: UInt8[np.ndarray, "looks tasks height width 3"]
    positions: Float[np.ndarray, "looks tasks 2"]
    cpu_s: float

    @property
    def success_rate(self) -> float:
        """Share of the goals that were reached."""
        return float(self.is_success.mean())


def play(tasks: GoalTasks, agent: Agent, *, report: Callable[[int, int], None] = lambda done, total: None) -> Played:
    """Let an agent act in all tasks side by side; a task whose goal is reached is over.

    Args:
        tasks: What to do.
        agent: Who does it.
        report: Told (actions done, budget) after every block.
    """
    world = TwoRoom(tasks.looks, tasks.starts)
    is_success = np.zeros(len(tasks.looks), bool)
    frames, positions = [world.render(tasks.resolution)], [world.positions]
    cpu_s = 0.0
    for done in range(0, tasks.budget_steps, tasks.frame_skip):
        active = np.flatnonzero(~is_success)
        if not len(active):
            break
        began = time.process_time()
        blocks = agent.act(world, frames[-1][active], active)
        cpu_s += time.process_time() - began
        for start in range(0, blocks.shape[1], 2):
            actions = np.zeros((len(tasks.looks), 2))
            actions[active] = np.where(is_success[active, None], 0.0, blocks[:, start : start + 2])
            world.step(actions)
            is_success |= np.hypot(*(world.positions - tasks.goals).T) <= SUCCESS_RADIUS
        frames.append(world.render(tasks.resolution))
        positions.append(world.positions)
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
