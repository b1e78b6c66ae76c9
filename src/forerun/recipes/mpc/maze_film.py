"""An episode in a maze as a GIF: the way that was gone, the futures that were imagined, the goal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forerun.core.dependencies import import_optional
from forerun.envs.control_maze import Maze
from forerun.envs.control_pointmaze import ARRIVAL, maze
from forerun.recipes.mpc.figure import Frame
from forerun.recipes.mpc.gif import GifFigure

_EVERY = 2
_SEEN, _CHOSEN, _OTHER = "#0072b2", "#d55e00", "0.6"


def animate_maze(frames: Sequence[Frame], path: Path, *, title: str) -> None:
    """Write an episode of PointMaze as a GIF.

    Args:
        frames: Of the episode.
        path: File to write, ``.gif``.
        title: Above the picture.

    Raises:
        ConfigError: The file is no GIF.
        MissingDependencyError: matplotlib, pillow or gymnasium-robotics is not installed.
    """
    collections = import_optional("matplotlib.collections", extra="plot", purpose="a GIF")
    gif = GifFigure((4.2, 4.4), dpi=72)
    axes = gif.figure.subplots()
    gif.figure.subplots_adjust(left=0.02, right=0.98, top=0.93, bottom=0.02)
    _draw_cells(axes, maze())
    axes.set_title(title, fontsize=9)
    others = axes.add_collection(collections.LineCollection([], colors=_OTHER, linewidths=0.6))
    (chosen,) = axes.plot([], [], color=_CHOSEN)
    (seen,) = axes.plot([], [], color=_SEEN)
    (ball,) = axes.plot([], [], "o", color=_SEEN, markersize=5)
    (goal,) = axes.plot([], [], "*", color="#009e73", markersize=12)
    for frame in frames[::_EVERY]:
        others.set_segments(frame.others[:, :, list(ARRIVAL.moving)])
        now = frame.seen[-1]
        chosen.set_data(*frame.future[:, list(ARRIVAL.moving)].T)
        seen.set_data(*frame.seen[:, list(ARRIVAL.moving)].T)
        ball.set_data(*now[list(ARRIVAL.moving), None])
        goal.set_data(*now[list(ARRIVAL.goal), None])
        gif.take()
    gif.save(path, frame_ms=80)


def _draw_cells(axes: Any, cells: Maze) -> None:
    patches = import_optional("matplotlib.patches", extra="plot", purpose="a GIF")
    middles = cells.middles.numpy()
    low, high = middles.min(axis=0) - 0.7, middles.max(axis=0) + 0.7
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[], facecolor="0.35")
    axes.set_aspect("equal")
    for x, y in middles:
        axes.add_patch(patches.Rectangle((x - 0.5, y - 0.5), 1.0, 1.0, color="white", zorder=0))
