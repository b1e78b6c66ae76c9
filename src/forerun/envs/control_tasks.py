"""The control tasks by name."""

from collections.abc import Callable
from typing import Final

from forerun.core.config import unknown_name
from forerun.envs import (
    control_double_integrator,
    control_halfcheetah,
    control_pendulum,
    control_pointmaze,
    control_push,
    control_walker2d,
)
from forerun.envs.control_task import ControlTask

_TASKS: Final[dict[str, Callable[[], ControlTask]]] = {
    "double-integrator": control_double_integrator.task,
    "pendulum": control_pendulum.task,
    "pointmaze": control_pointmaze.task,
    "halfcheetah": control_halfcheetah.task,
    "walker2d": control_walker2d.task,
    "push": control_push.task,
}

TASK_NAMES: Final = tuple(_TASKS)


def control_task(name: str) -> ControlTask:
    """Return a task.

    Args:
        name: One of :data:`TASK_NAMES`.

    Raises:
        ConfigError: There is no such task.
        MissingDependencyError: The task needs a package that is not installed.
    """
    if name not in _TASKS:
        raise unknown_name("control task", name, TASK_NAMES)
    return _TASKS[name]()
