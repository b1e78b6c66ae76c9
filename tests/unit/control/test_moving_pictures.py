"""A figure as GIF or MP4: every picture is there, and a name of another kind is refused."""

import pytest

from forerun.core.errors import ConfigError
from forerun.recipes.mpc.gif import GifFigure

pytest.importorskip("matplotlib")


def drawn():
    figure = GifFigure((1.05, 0.75), dpi=60)
    axes = figure.figure.subplots()
    for width in (1, 4, 8):
        axes.plot([0, 1], linewidth=width)
        figure.take()
    return figure


def test_a_video_has_every_picture_at_even_sides(tmp_path):
    av = pytest.importorskip("av")
    drawn().save(tmp_path / "film.mp4", frame_ms=80)
    with av.open(str(tmp_path / "film.mp4")) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(44, 62)] * 3
    assert frames[0].mean() > frames[1].mean() > frames[2].mean(), "the lines grow"


def test_a_gif_has_every_picture(tmp_path):
    images = pytest.importorskip("PIL.Image")
    drawn().save(tmp_path / "film.gif", frame_ms=80)
    with images.open(tmp_path / "film.gif") as film:
        assert (film.n_frames, film.info["duration"]) == (3, 80)


def test_other_kinds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.gif or \.mp4"):
        drawn().save(tmp_path / "film.avi", frame_ms=80)
