"""Reacher as a task with pictures: an arm of two links, moved by torques, seen from above; the body is dm_control's.

A state is the arm's two angles and their speeds, nothing else: contacts are off. An action is held for two steps of
0.02 s, as stable-worldmodel does, and a goal is reached where both angles are within 0.05 of it (its criterion
``qpos_match``); the ball that dm_control wants touched is not drawn. MuJoCo draws through OpenGL without a screen.
"""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, UInt8

from forerun.core.dependencies import import_optional
from forerun.core.errors import MissingDependencyError
from forerun.envs.pixel_world import EpisodeStart, PolicyName, check_factors

STATE_NAMES: Final = (
    "shoulder_cos", "shoulder_sin", "wrist_cos", "wrist_sin", "shoulder_speed", "wrist_speed", "finger_x", "finger_y",
)  # fmt: skip
WRIST_LIMIT: Final = np.deg2rad(160.0)
_LINK_M: Final = 0.12
_ACTION_REPEAT: Final = 2
_REACHED_RADIANS: Final = 0.05
_DRAWN_PIXELS: Final = 128
"""Side at which a frame is drawn at least, before it is averaged down: a software renderer pays for every pixel."""
_HIDDEN_GROUP: Final = 5
_PURPOSE: Final = "the task 'reacher'"
_NOISE_STD: Final = 0.6
_ACTIONS_PER_TARGET: Final = 25


class ReacherWorlds:
    """Worlds of Reacher; one simulator steps and draws all of them in turn.

    Args:
        states: What each begins in, as :data:`STATE_NAMES`.

    Raises:
        MissingDependencyError: MuJoCo or dm_control is not installed.
    """

    def __init__(self, states: Float[np.ndarray, "N 8"]) -> None:
        self._mujoco, self._model = _simulator()
        self._data = self._mujoco.MjData(self._model)
        self._angles = angles_of(states)
        self._speeds = np.array(states[:, 4:6], np.float64)

    @property
    def states(self) -> Float[np.ndarray, "N 8"]:
        """What is known of each world."""
        return states_of(self._angles, self._speeds)

    def step(self, actions: Float[np.ndarray, "N 2"]) -> None:
        """Act once in every world; torques are clipped to [-1, 1]."""
        data = self._data
        for number, action in enumerate(np.clip(actions, -1, 1)):
            data.qpos[:], data.qvel[:], data.ctrl[:] = self._angles[number], self._speeds[number], action
            for _ in range(_ACTION_REPEAT):
                self._mujoco.mj_step(self._model, data)
            self._angles[number], self._speeds[number] = data.qpos, data.qvel

    def render(self, resolution: int) -> UInt8[np.ndarray, "N resolution resolution 3"]:
        """Return what the camera above sees of every world.

        Raises:
            MissingDependencyError: MuJoCo finds no OpenGL to draw with.
        """
        factor = -(-_DRAWN_PIXELS // resolution)
        renderer = _renderer(resolution * factor)
        frames: list[np.ndarray] = []
        for angles in self._angles:
            self._data.qpos[:] = angles
            self._mujoco.mj_forward(self._model, self._data)
            renderer.update_scene(self._data, camera="fixed")
            squares = renderer.render().reshape(resolution, factor, resolution, factor, 3)
            frames.append(np.rint(squares.mean(axis=(1, 3))).astype(np.uint8))
        return np.stack(frames)


class ReacherTask:
    """Reacher; see :class:`forerun.envs.pixel_world.PixelTask`."""

    name = "reacher"
    action_dim = 2
    state_names = STATE_NAMES
    context_names: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()

    def begin(self, policy: PolicyName, factors: frozenset[str], rng: np.random.Generator) -> EpisodeStart:
        """As :meth:`forerun.envs.pixel_world.PixelTask.begin`."""
        check_factors(self, factors)
        state = states_of(_drawn_angles(rng)[None], np.zeros((1, 2)))[0]
        return EpisodeStart(context=np.zeros(0), state=state, act=_policy(policy, rng))

    def worlds(self, contexts: Float[np.ndarray, "N 0"], states: Float[np.ndarray, "N 8"]) -> ReacherWorlds:
        """As :meth:`forerun.envs.pixel_world.PixelTask.worlds`."""
        return ReacherWorlds(states)

    def is_reached(self, states: Float[np.ndarray, "N 8"], goals: Float[np.ndarray, "N 8"]) -> Bool[np.ndarray, " N"]:
        """As :meth:`forerun.envs.pixel_world.PixelTask.is_reached`; speeds don't count."""
        return self.distances(states, goals) < _REACHED_RADIANS

    def distances(self, states: Float[np.ndarray, "N 8"], goals: Float[np.ndarray, "N 8"]) -> Float[np.ndarray, " N"]:
        """As :meth:`forerun.envs.pixel_world.PixelTask.distances`: of the angle that is farther off, in radians."""
        return np.abs(_wrapped(angles_of(states) - angles_of(goals))).max(axis=1)


def states_of(angles: Float[np.ndarray, "N 2"], speeds: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 8"]:
    """Return states as :data:`STATE_NAMES`, of the angles of shoulder and wrist in radians and their speeds."""
    shoulder, both = angles[:, 0], angles.sum(axis=1)
    finger_x = _LINK_M * (np.cos(shoulder) + np.cos(both))
    finger_y = _LINK_M * (np.sin(shoulder) + np.sin(both))
    turns = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(len(angles), 4)
    return np.concatenate([turns, speeds, finger_x[:, None], finger_y[:, None]], axis=1)


def angles_of(states: Float[np.ndarray, "N 8"]) -> Float[np.ndarray, "N 2"]:
    """Return the angles of shoulder and wrist, in (-pi, pi]."""
    return np.arctan2(states[:, [1, 3]], states[:, [0, 2]]).astype(np.float64)


def _policy(name: PolicyName, rng: np.random.Generator) -> Callable[[Float[np.ndarray, " 8"]], Float[np.ndarray, " 2"]]:
    """Return who acts: torques by chance, or a spring and a damper towards angles drawn anew now and then."""
    if name == "random":
        return lambda state: rng.uniform(-1, 1, 2)
    target, num_left = _drawn_angles(rng), _ACTIONS_PER_TARGET

    def act(state: Float[np.ndarray, " 8"]) -> Float[np.ndarray, " 2"]:
        nonlocal target, num_left
        num_left -= 1
        if num_left < 0:
            target, num_left = _drawn_angles(rng), _ACTIONS_PER_TARGET
        angles = angles_of(state[None])[0]
        gap = target - angles
        gap[0] = _wrapped(gap[0])
        torques = 2.0 * gap - 0.3 * state[4:6]
        if name == "noisy":
            torques = torques + rng.normal(0, _NOISE_STD, 2)
        return np.clip(torques, -1, 1)

    return act


def _drawn_angles(rng: np.random.Generator) -> Float[np.ndarray, " 2"]:
    return np.array([rng.uniform(-np.pi, np.pi), rng.uniform(-WRIST_LIMIT, WRIST_LIMIT)])


def _wrapped(angles: Any) -> Any:
    """Return angles in [-pi, pi)."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


@cache
def _simulator() -> tuple[ModuleType, Any]:
    """Return MuJoCo and the compiled body, the ball out of sight."""
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo reads it once, when it is imported
    try:
        mujoco = import_optional("mujoco", extra="worlds", purpose=_PURPOSE)
    except (AttributeError, OSError, RuntimeError) as error:  # PyOpenGL without a library of the platform named
        raise _without_renderer(error) from error
    dm_control = import_optional("dm_control", extra="worlds", purpose=_PURPOSE)
    path = Path(next(iter(dm_control.__path__))) / "suite" / "reacher.xml"
    model = mujoco.MjModel.from_xml_path(str(path))
    model.geom("target").group = _HIDDEN_GROUP
    # Frames are averaged down, which smooths edges; that and a coarser shadow save two thirds of the time.
    model.vis.quality.offsamples, model.vis.quality.shadowsize = 0, 512
    return mujoco, model


@cache
def _renderer(size: int) -> Any:
    """Return what draws frames of a size; made once, as a context of OpenGL takes a while."""
    mujoco, model = _simulator()
    # To draw with it all the same can end the process.
    if mujoco.GLContext.__module__.endswith("glfw") and sys.platform == "linux" and "DISPLAY" not in os.environ:
        raise _without_renderer(RuntimeError("it was imported to draw in windows, and there is no screen"))
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
    model.vis.global_.offheight = max(model.vis.global_.offheight, size)
    try:
        return mujoco.Renderer(model, size, size)
    except (ImportError, AttributeError, OSError, RuntimeError, mujoco.FatalError) as error:
        raise _without_renderer(error) from error


def _without_renderer(error: Exception) -> MissingDependencyError:
    """Return what says which package and which variable are missing."""
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return MissingDependencyError(
        f"{_PURPOSE}: MuJoCo can't draw with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r} ({reason}); set "
        "MUJOCO_GL=egl (package libegl1) or MUJOCO_GL=osmesa (package libosmesa6) before the program starts, as it is "
        "read once, where MuJoCo is imported first"
    )
