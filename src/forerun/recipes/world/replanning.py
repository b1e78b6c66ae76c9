"""Planning in a world that is disturbed: a disc that is put elsewhere, and a planner that notices.

A plan of several blocks is executed without looking back, as in the published evaluation. Whoever looks at every frame
can plan anew where what is seen is not what was predicted, at the price of one prediction a frame instead of a plan.
"""

from typing import Final

import numpy as np
import torch

from forerun.data.pixel_episodes import PixelEpisodes
from forerun.envs.two_room import SUCCESS_RADIUS, TwoRoom, free_position
from forerun.recipes.world.goal_tasks import GoalTasks
from forerun.recipes.world.play import BeforeLook
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.surprise import conformal_threshold, episode_surprises

_LEAST_JUMP: Final = 60.0
_LEAST_TO_GOAL: Final = 2 * SUCCESS_RADIUS


def teleport(tasks: GoalTasks, *, after_blocks: int, seed: int) -> BeforeLook:
    """Return what puts every disc elsewhere once, for :func:`forerun.recipes.world.play.play`.

    A disc is put at least 60 units from where it is and 32 from its goal; candidates are the same for everybody who
    acts in these tasks.

    Args:
        tasks: Where.
        after_blocks: Blocks of actions before that.
        seed: Draws.
    """

    def happen(world: TwoRoom, block: int) -> None:
        if block == after_blocks:
            world.positions = np.stack([_elsewhere(tasks, world, task, seed) for task in range(len(tasks.looks))])

    return happen


def alarm_threshold(model: Jepa, held_out: PixelEpisodes, *, false_alarm_rate: float) -> float:
    """Return the surprise above which a planner plans anew.

    Args:
        model: Predicts.
        held_out: Undisturbed episodes that calibrate.
        false_alarm_rate: Share of such frames that may raise an alarm.

    Raises:
        ConfigError: The rate is out of range, or there are too few frames for it.
    """
    return conformal_threshold(torch.cat(episode_surprises(model, held_out)), false_alarm_rate=false_alarm_rate)


def _elsewhere(tasks: GoalTasks, world: TwoRoom, task: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng((seed, 0x7E1E, task))
    while True:
        position = free_position(tasks.looks[task], rng)
        is_far = np.hypot(*(position - world.positions[task])) >= _LEAST_JUMP
        if is_far and np.hypot(*(position - tasks.goals[task])) >= _LEAST_TO_GOAL:
            return position
