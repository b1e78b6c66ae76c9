"""PointMaze-Medium of gymnasium-robotics: a ball that is pushed through a maze to a goal that differs each time.

A step lasts five of the simulator's. Most of the data's behaviours head for the middle of the next cell on a shortest
way, each with a strength, a damping and noise of its own, some to another place than the goal. The others know no
walls: blind ones head straight for a place, pushers push anywhere. They alone show what a wall does.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.core.dependencies import import_optional
from forerun.envs.control_env import ActuatorFault
from forerun.envs.control_goals import Arrival
from forerun.envs.control_gymnasium import GymnasiumBatch
from forerun.envs.control_maze import Maze
from forerun.envs.control_mujoco import make_mujoco
from forerun.envs.control_task import ControlTask, Policy, SmoothNoise

STATE_NAMES: Final = ("x", "y", "x_velocity", "y_velocity", "goal_x", "goal_y")
ACTION_NAMES: Final = ("x_force", "y_force")
NUM_STEPS: Final = 160
BOUNDS: Final = ActionBounds.symmetric(2)
ARRIVAL: Final = Arrival(moving=(0, 1), goal=(4, 5), radius=0.45)
"""The task's own radius."""
_PURPOSE: Final = "PointMaze"
_FRAME_SKIP: Final = 5
"""Steps of the simulator, 0.01 s each, that an action lasts."""
_LARGEST_SPEED: Final = 5.0
"""Along each axis, in m/s."""
_KINDS: Final = (0.45, 0.25, 0.15, 0.15)
"""Shares of the behaviours: walkers to the goal, walkers to other places, blind ones, pushers."""
_BORED: Final = 1 / 40
"""Chance that a blind one takes another place in a step: it may never arrive."""


class PointMazeVector:
    """The environment with Gymnasium's signatures and a vector as observation: the goal is part of it.

    The package makes two of each step of the simulator and looks at the goal in between; here the simulator runs
    through, with the limit of the speed that the package has before each of its steps.

    Raises:
        MissingDependencyError: gymnasium-robotics or MuJoCo is not installed.
    """

    def __init__(self) -> None:
        boxes = import_optional("gymnasium.spaces", extra="worlds", purpose=_PURPOSE)
        self._mujoco = import_optional("mujoco", extra="worlds", purpose=_PURPOSE)
        # One step more than an episode has, so that this class says when it ends.
        self._env = make_mujoco(
            "PointMaze_Medium-v3",
            purpose=_PURPOSE,
            num_steps=NUM_STEPS + 1,
            registered_by="gymnasium_robotics",
        )
        # The package leaves the model file that it wrote for the map where it was.
        Path(self._env.unwrapped.tmp_xml_file_path).unlink(missing_ok=True)
        self.action_space = self._env.action_space
        self.observation_space = boxes.Box(-np.inf, np.inf, (len(STATE_NAMES),), dtype=np.float64)
        self._goal = np.zeros(2)
        self._num_done = 0

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode with a start and a goal of its own."""
        seen, info = self._env.reset(seed=seed)
        self._goal, self._num_done = seen["desired_goal"], 0
        return self._seen(), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Push with one force for 0.05 s; the reward says whether the goal is reached at the end of it."""
        point = self._env.unwrapped.point_env
        point.data.ctrl[:] = np.clip(action, -1.0, 1.0)
        for _ in range(_FRAME_SKIP):
            np.clip(point.data.qvel, -_LARGEST_SPEED, _LARGEST_SPEED, out=point.data.qvel)
            self._mujoco.mj_step(point.model, point.data)
        self._num_done += 1
        seen = self._seen()
        is_there = bool(np.linalg.norm(seen[:2] - self._goal) <= ARRIVAL.radius)
        return seen, float(is_there), False, self._num_done >= NUM_STEPS, {"success": is_there}

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _seen(self) -> np.ndarray:
        data = self._env.unwrapped.point_env.data
        return np.concatenate([data.qpos, data.qvel, self._goal])


def make_env(num_envs: int) -> GymnasiumBatch:
    """Return a batch of environments; see :class:`PointMazeVector` for what it raises."""
    return GymnasiumBatch(PointMazeVector, num_envs)


@cache
def maze() -> Maze:
    """Return the map.

    Raises:
        MissingDependencyError: gymnasium-robotics is not installed.
    """
    import_optional("gymnasium_robotics", extra="worlds", purpose=_PURPOSE)
    return Maze(import_module("gymnasium_robotics.envs.maze.maps").MEDIUM_MAZE)


def behaviour(num_envs: int, generator: torch.Generator) -> Policy:
    """Return a mixture of walkers to the goal, strayers, blind ones and pushers, slow and fast, steady and shaky.

    Args:
        num_envs: Behaviours.
        generator: Of all of it, and of the noise.
    """
    strength = 0.6 + 0.6 * torch.rand((num_envs, 1), generator=generator)
    damping = 0.3 + 0.3 * torch.rand((num_envs, 1), generator=generator)
    kinds = torch.multinomial(torch.tensor(_KINDS), num_envs, replacement=True, generator=generator)
    heads_for_goal, is_blind, only_pushes = kinds == 0, kinds == 2, kinds == 3
    std = 0.5 * torch.rand((num_envs, 1), generator=generator)
    std = torch.where(only_pushes[:, None], 2 * std + 0.4, std)
    memory = torch.where(only_pushes, 0.95, 0.8)[:, None]
    places = maze().middles
    elsewhere = places[torch.randint(len(places), (num_envs,), generator=generator)]
    noise = SmoothNoise((num_envs, 2), std=std, memory=memory, generator=generator)

    def act(states: Float[Tensor, "envs 6"], env_step: int, /) -> Float[Tensor, "envs 2"]:
        nonlocal elsewhere
        positions, velocities = states[:, :2], states[:, 2:4]
        arrived = (positions - elsewhere).norm(dim=-1) < ARRIVAL.radius
        is_bored = is_blind & (torch.rand((num_envs,), generator=generator) < _BORED)
        drawn = places[torch.randint(len(places), (num_envs,), generator=generator)]
        elsewhere = torch.where((arrived | is_bored)[:, None], drawn, elsewhere)
        goals = torch.where(heads_for_goal[:, None], states[:, 4:6], elsewhere)
        straight = goals - positions
        straight = straight / straight.norm(dim=-1, keepdim=True).clamp(min=1.0)
        ahead = torch.where(is_blind[:, None], straight, maze().waypoints(positions, goals) - positions)
        wanted = strength * ahead.masked_fill(only_pushes[:, None], 0.0) - damping * velocities
        return BOUNDS.clamp(wanted + noise.next())

    return act


def task() -> ControlTask:
    """Return the task, in episodes of eight seconds."""
    return ControlTask(
        name="pointmaze",
        summary="push a ball through a maze to a goal that differs each time; waypoints, noise, strayers, collisions",
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        bounds=BOUNDS,
        num_steps=NUM_STEPS,
        discount=0.99,
        horizon=32,
        num_episodes=400,
        make_env=make_env,
        behaviour=behaviour,
        reward=ARRIVAL.reward,
        has_succeeded=ARRIVAL.is_there,
        goal=ARRIVAL.goal,
        stitched=ARRIVAL,
        value_depths=(8, 16, 24, 32),
        sharp=ARRIVAL.moving,
        most_wide=0.5,
        blind_share=0.5,
        most_envs=100,
        defects={"weak": ActuatorFault(indices=(0,), gain=0.4)},
    )
