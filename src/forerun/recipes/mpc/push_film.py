"""An episode of push as a GIF, from above and from the side: hand, puck, goal, and the futures that were imagined."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forerun.core.dependencies import import_optional
from forerun.envs.control_push import ARRIVAL, HAND, STATE_NAMES
from forerun.recipes.mpc.figure import Frame
from forerun.recipes.mpc.gif import GifFigure

_EVERY = 2
_HAND, _CHOSEN, _OTHER, _PUCK, _GOAL = "#0072b2", "#d55e00", "0.6", "0.2", "#009e73"
_GRIPPER = STATE_NAMES.index("gripper")
_FINGER_GAP = 0.09
"""Metres between the fingers of an open gripper."""


class _View:
    """The scene along one axis.

    Args:
        axes: Drawn into.
        places: Which two of x, y and z are seen, to the right and up.
        limits: Of both, in metres.
    """

    def __init__(self, axes: Any, places: tuple[int, int], limits: tuple[tuple[float, float], ...]) -> None:
        collections = import_optional("matplotlib.collections", extra="plot", purpose="a GIF")
        patches = import_optional("matplotlib.patches", extra="plot", purpose="a GIF")
        self._hand, self._puck, self._goal = (
            [numbers[place] for place in places] for numbers in (HAND, ARRIVAL.moving, ARRIVAL.goal)
        )
        # The fingers open along x; from the side one hides the other.
        self._finger_gap = _FINGER_GAP if places[0] == 0 else 0.0
        axes.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[])
        axes.set_xlabel("xyz"[places[0]])
        axes.set_ylabel("xyz"[places[1]])
        axes.set_aspect("equal")
        self._around = axes.add_patch(patches.Circle((0, 0), ARRIVAL.radius, color=_GOAL, alpha=0.25))
        self._others = axes.add_collection(collections.LineCollection([], colors=_OTHER, linewidths=0.6))
        (self._pushed,) = axes.plot([], [], color=_PUCK, linewidth=1)
        (self._chosen,) = axes.plot([], [], color=_CHOSEN)
        (self._disc,) = axes.plot([], [], "o", color=_PUCK, markersize=11)
        (self._fingers,) = axes.plot([], [], color=_HAND, linewidth=0, marker="|", markersize=13, markeredgewidth=3)

    def show(self, frame: Frame) -> None:
        """Draw a moment: the puck's imagined ways in grey, the hand's chosen one in orange."""
        now = frame.seen[-1]
        self._others.set_segments(frame.others[:, :, self._puck])
        self._pushed.set_data(*frame.seen[:, self._puck].T)
        self._chosen.set_data(*frame.future[:, self._hand].T)
        self._disc.set_data(*now[self._puck, None])
        self._around.set_center(now[self._goal])
        half = 0.5 * self._finger_gap * now[_GRIPPER]
        right, up = now[self._hand]
        self._fingers.set_data(np.array([right - half, right + half]), np.array([up, up]))


def animate_push(frames: Sequence[Frame], path: Path, *, title: str) -> None:
    """Write an episode of push as a GIF.

    Args:
        frames: Of the episode.
        path: File to write, ``.gif``.
        title: Above the picture.

    Raises:
        ConfigError: The file is no GIF.
        MissingDependencyError: matplotlib or pillow is not installed.
    """
    gif = GifFigure((5.6, 4.2), dpi=72)
    above, beside = gif.figure.subplots(1, 2, width_ratios=(1, 0.75))
    gif.figure.subplots_adjust(left=0.06, right=0.98, top=0.9, bottom=0.08, wspace=0.15)
    gif.figure.suptitle(title, fontsize=9)
    views = (
        _View(above, (0, 1), ((-0.2, 0.2), (0.5, 1.0))),
        _View(beside, (2, 1), ((0.0, 0.35), (0.5, 1.0))),
    )
    for frame in frames[::_EVERY]:
        for view in views:
            view.show(frame)
        gif.take()
    gif.save(path, frame_ms=80)
