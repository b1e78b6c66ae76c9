"""PointMaze-Medium of gymnasium-robotics: a ball that is pushed through a maze to a goal that differs each time.

A step lasts five of the simulator's. The data's behaviours head for the middle of the next cell on a shortest way, each
with a strength, a damping and noise of its own; some of them are on their way to another place than the goal.
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
_STRAYING: Final = 0.3
"""Share of the behaviours that don't head for the goal."""


class PointMazeVector:
    """The environment with Gymnasium's signatures and a vector as observation: the goal is part of it.

    Raises:
        MissingDependencyError: gymnasium-robotics or MuJoCo is not installed.
    """

    def __init__(self) -> None:
        boxes = import_optional("gymnasium.spaces", extra="worlds", purpose=_PURPOSE)
        # One step more than an episode has, so that this class says when it ends.
        self._env = make_mujoco(
            "PointMaze_Medium-v3",
            purpose=_PURPOSE,
            num_steps=NUM_STEPS * _FRAME_SKIP + 1,
            registered_by="gymnasium_robotics",
        )
        # The package leaves the model file that it wrote for the map where it was.
        Path(self._env.unwrapped.tmp_xml_file_path).unlink(missing_ok=True)
        self.action_space = self._env.action_space
        self.observation_space = boxes.Box(-np.inf, np.inf, (len(STATE_NAMES),), dtype=np.float64)
        self._num_done = 0

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode with a start and a goal of its own."""
        seen, info = self._env.reset(seed=seed)
        self._num_done = 0
        return _vector(seen), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Push with one force for 0.05 s; the reward says whether the goal is reached at the end of it."""
        seen, reward, info = {}, 0.0, {}
        for _ in range(_FRAME_SKIP):
            seen, reward, _, _, info = self._env.step(action)
        self._num_done += 1
        return _vector(seen), float(reward), False, self._num_done >= NUM_STEPS, info

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _vector(seen: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([seen["observation"], seen["desired_goal"]])


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
    """Return a mixture of walkers to the goal and of strayers, slow and fast, steady and shaky.

    Args:
        num_envs: Behaviours.
        generator: Of all of it, and of the noise.
    """
    strength = 0.6 + 0.6 * torch.rand((num_envs, 1), generator=generator)
    damping = 0.3 + 0.3 * torch.rand((num_envs, 1), generator=generator)
    std = 0.5 * torch.rand((num_envs, 1), generator=generator)
    strays = torch.rand((num_envs,), generator=generator) < _STRAYING
    places = maze().middles
    elsewhere = places[torch.randint(len(places), (num_envs,), generator=generator)]
    noise = SmoothNoise((num_envs, 2), std=std, memory=0.8, generator=generator)

    def act(states: Float[Tensor, "envs 6"], env_step: int, /) -> Float[Tensor, "envs 2"]:
        nonlocal elsewhere
        positions, velocities = states[:, :2], states[:, 2:4]
        arrived = (positions - elsewhere).norm(dim=-1) < ARRIVAL.radius
        drawn = places[torch.randint(len(places), (num_envs,), generator=generator)]
        elsewhere = torch.where(arrived[:, None], drawn, elsewhere)
        goals = torch.where(strays[:, None], elsewhere, states[:, 4:6])
        ahead = maze().waypoints(positions, goals) - positions
        return BOUNDS.clamp(strength * ahead - damping * velocities + noise.next())

    return act


def task() -> ControlTask:
    """Return the task, in episodes of eight seconds."""
    return ControlTask(
        name="pointmaze",
        summary="push a ball through a maze to a goal that differs each time; waypoints, noise, strayers",
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        bounds=BOUNDS,
        num_steps=NUM_STEPS,
        discount=0.98,
        horizon=32,
        num_episodes=400,
        make_env=make_env,
        behaviour=behaviour,
        reward=ARRIVAL.reward,
        has_succeeded=ARRIVAL.is_there,
        goal=ARRIVAL.goal,
        most_envs=100,
        defects={"weak": ActuatorFault(indices=(0,), gain=0.4)},
    )
