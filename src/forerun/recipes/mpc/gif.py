"""A matplotlib figure, drawn again and again, as a GIF."""

from pathlib import Path
from typing import Any

import numpy as np

from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError

_NUM_COLOURS = 64


class GifFigure:
    """A figure and the pictures that were taken of it.

    Args:
        size_inches: Width and height.
        dpi: Pixels an inch.

    Raises:
        MissingDependencyError: matplotlib or pillow is not installed.
    """

    def __init__(self, size_inches: tuple[float, float], *, dpi: int) -> None:
        figures = import_optional("matplotlib.figure", extra="plot", purpose="a GIF")
        canvases = import_optional("matplotlib.backends.backend_agg", extra="plot", purpose="a GIF")
        self._images = import_optional("PIL.Image", extra="plot", purpose="a GIF")
        self.figure: Any = figures.Figure(figsize=size_inches, dpi=dpi)
        self._canvas = canvases.FigureCanvasAgg(self.figure)
        self._pictures: list[Any] = []

    def take(self) -> None:
        """Keep the figure as it looks now."""
        self._canvas.draw()
        picture = self._images.fromarray(np.asarray(self._canvas.buffer_rgba()).copy()).convert("RGB")
        self._pictures.append(picture.quantize(_NUM_COLOURS))

    def save(self, path: Path, *, frame_ms: int) -> None:
        """Write what was taken.

        Args:
            path: File to write, ``.gif``.
            frame_ms: Milliseconds that each picture is shown.

        Raises:
            ConfigError: Nothing was taken, or the name is no GIF's.
        """
        if not self._pictures or path.suffix.lower() != ".gif":
            raise ConfigError(f"{path}: needs an episode and a name that ends in .gif")
        self._pictures[0].save(path, save_all=True, append_images=self._pictures[1:], duration=frame_ms, loop=0)
