"""Curves of a run for others to look at: TensorBoard files, W&B, trackio. All optional, and none decides anything."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError

TRACKERS_VARIABLE: Final = "FORERUN_TRACKERS"
"""Names parted by commas; processes that are started for runs inherit it."""
TENSORBOARD_FOLDER: Final = "tensorboard"
"""In the folder of a run."""
_SERVICES: Final = ("wandb", "trackio")
_PROJECT: Final = "forerun"


class Tracker(Protocol):
    """Takes numbers along a run."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Take the values of some curves after a step, from 1."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoardTracker:
    """Event files in the folder of a run; a run that goes on replaces what was written after its checkpoint.

    Args:
        folder: Of the run.
        first_step: Steps from here on are written anew.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        import_optional("tensorboard", extra="track", purpose="--tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(os.fspath(folder / TENSORBOARD_FOLDER), purge_step=first_step)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write the values, see :meth:`Tracker.add`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class ServiceTracker:
    """A run of W&B, or of trackio, which has the same functions.

    Args:
        service: Name of the package.
        name: Of the run.
        config: Settings of the run.

    Raises:
        MissingDependencyError: The package is not installed.
    """

    def __init__(self, service: str, *, name: str, config: Mapping[str, Any]) -> None:
        self._service: Any = import_optional(service, extra="track", purpose=f"--tracker {service}")
        self._service.init(project=_PROJECT, name=name, config=dict(config))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Send the values, see :meth:`Tracker.add`."""
        self._service.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._service.finish()


def open_trackers(folder: Path, config: Mapping[str, Any], *, first_step: int) -> list[Tracker]:
    """Return the trackers that ``FORERUN_TRACKERS`` names; none without it.

    Args:
        folder: Of the run, whose name is the run's.
        config: Settings of the run.
        first_step: First step that this process makes, from 1.

    Raises:
        ConfigError: The variable names something else.
        MissingDependencyError: A package is not installed.
    """
    trackers: list[Tracker] = []
    for name in filter(None, os.environ.get(TRACKERS_VARIABLE, "").split(",")):
        if name == "tensorboard":
            trackers.append(TensorBoardTracker(folder, first_step=first_step))
        elif name in _SERVICES:
            trackers.append(ServiceTracker(name, name=folder.name, config=config))
        else:
            raise ConfigError(f"{TRACKERS_VARIABLE}={name!r}: must be of tensorboard, {', '.join(_SERVICES)}")
    return trackers
