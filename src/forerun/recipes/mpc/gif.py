"""A matplotlib figure, drawn again and again, as a GIF or MP4."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError

_NUM_COLOURS = 64
_CODEC = "h264"


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
        self._pictures: list[np.ndarray] = []

    def take(self) -> None:
        """Keep the figure as it looks now."""
        self._canvas.draw()
        self._pictures.append(np.asarray(self._canvas.buffer_rgba())[:, :, :3].copy())

    def save(self, path: Path, *, frame_ms: int) -> None:
        """Write what was taken.

        Args:
            path: File to write, ``.gif`` or ``.mp4``.
            frame_ms: Milliseconds that each picture is shown.

        Raises:
            ConfigError: Nothing was taken, or the name is of neither kind.
            MissingDependencyError: For MP4, PyAV is not installed.
        """
        kind = path.suffix.lower()
        if not self._pictures or kind not in {".gif", ".mp4"}:
            raise ConfigError(f"{path}: needs an episode and a name that ends in .gif or .mp4")
        if kind == ".mp4":
            self._save_video(path, frame_ms)
            return
        first, *others = (self._images.fromarray(one).quantize(_NUM_COLOURS) for one in self._pictures)
        first.save(path, save_all=True, append_images=others, duration=frame_ms, loop=0)

    def _save_video(self, path: Path, frame_ms: int) -> None:
        av = import_optional("av", extra="worlds", purpose="an MP4")
        # Codecs take even sides only.
        height, width = (side // 2 * 2 for side in self._pictures[0].shape[:2])
        with av.open(str(path), mode="w") as container:
            stream = container.add_stream(_CODEC, rate=Fraction(1000, frame_ms))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for picture in self._pictures:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
