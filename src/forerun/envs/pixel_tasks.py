"""The tasks with pictures by name."""

from collections.abc import Mapping
from typing import Final

from forerun.core.errors import ConfigError
from forerun.envs.pixel_world import PixelTask
from forerun.envs.push_t import PushTTask
from forerun.envs.reacher import ReacherTask
from forerun.envs.stable_two_room import StableTwoRoomTask
from forerun.envs.two_room_task import TwoRoomTask

PIXEL_TASKS: Final[Mapping[str, PixelTask]] = {
    task.name: task for task in (TwoRoomTask(), PushTTask(), StableTwoRoomTask(), ReacherTask())
}


def pixel_task(name: str) -> PixelTask:
    """Return the task of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in PIXEL_TASKS:
        raise ConfigError(f"task {name!r}: known are {', '.join(PIXEL_TASKS)}")
    return PIXEL_TASKS[name]
