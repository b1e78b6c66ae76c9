"""Pictures of a study and of an episode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from forerun.core.control import Plan
from forerun.core.dependencies import import_optional
from forerun.recipes.mpc.gif import GifFigure

_PURPOSE = "a figure"
_NUM_FUTURES = 24
_NUM_DRAWN = 4


def draw_results(results: Mapping[str, Any], path: Path) -> None:
    """Draw return and latency of every way to control as PNG.

    Args:
        results: Of a study.
        path: File to write.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figures = import_optional("matplotlib.figure", extra="plot", purpose=_PURPOSE)
    figure = figures.Figure(figsize=(10, 4.5), layout="constrained")
    bars, latency = figure.subplots(1, 2)
    rows = results["rows"]
    places = np.arange(len(rows))
    values = np.array([row["return"] for row in rows])
    bars.errorbar(values, places, xerr=_spread(rows), fmt="o", capsize=3)
    bars.set_yticks(places, [row["name"] for row in rows])
    bars.invert_yaxis()
    bars.set(xlabel="return, interquartile mean and 95% interval", title=results["study"]["task"])
    bars.grid(axis="x", alpha=0.3)
    _scatter(latency, rows)
    figure.savefig(path, dpi=110)


def draw_bench(results: Mapping[str, Any], path: Path) -> None:
    """Draw latency against return as PNG, with a line through the ways that nothing beats.

    Args:
        results: Of :func:`~forerun.recipes.mpc.bench.bench`.
        path: File to write.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figures = import_optional("matplotlib.figure", extra="plot", purpose=_PURPOSE)
    figure = figures.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    _scatter(axes, results["rows"])
    best = [row for row in results["rows"] if row["is_unbeaten"]]
    axes.plot([row["plan_cpu_ms"] for row in best], [row["return"] for row in best], color="#d55e00", zorder=0)
    figure.savefig(path, dpi=110)


def _scatter(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw each way as a point with its interval, by what its plans cost."""
    values, latencies = [row["return"] for row in rows], [row["plan_cpu_ms"] for row in rows]
    axes.errorbar(latencies, values, yerr=_spread(rows), fmt="o", capsize=3)
    for row in rows:
        axes.annotate(row["name"], (row["plan_cpu_ms"], row["return"]), fontsize=7, xytext=(4, 4),
                      textcoords="offset points")  # fmt: skip
    axes.set(xscale="log", xlabel="CPU ms per plan", ylabel="return", title="Latency against return")
    axes.grid(alpha=0.3)


def _spread(rows: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "ends rows"]:
    ends = [[row["return"] - row["low"] for row in rows], [row["high"] - row["return"] for row in rows]]
    return np.clip(np.array(ends), 0, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One moment of an episode.

    Attributes:
        seen: States up to now.
        future: The chosen plan's predicted states.
        others: Predicted states of other candidates, best first.
    """

    seen: Float[np.ndarray, "steps state"]
    future: Float[np.ndarray, "horizon state"]
    others: Float[np.ndarray, "samples horizon state"]


def most_varying(states: Float[np.ndarray, "steps state"]) -> list[int]:
    """Return the places of the numbers of a state that vary most, as many as are drawn, in their order."""
    return sorted(int(index) for index in np.argsort(-np.ptp(states, axis=0))[:_NUM_DRAWN])


class EpisodeRecorder:
    """Keeps what an animation needs, of the first environment of a batch."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._seen: list[np.ndarray] = []

    def take(self, state: Float[np.ndarray, " state"], plan: Plan) -> None:
        """Keep a moment.

        Args:
            state: The present.
            plan: Made for it.
        """
        self._seen.append(state.copy())
        order = plan.future_scores[0].argsort(descending=True)[:_NUM_FUTURES]
        self.frames.append(
            Frame(
                seen=np.array(self._seen),
                future=plan.states[0].numpy().copy(),
                others=plan.futures[0, order].numpy().copy(),
            )
        )


def animate(frames: Sequence[Frame], names: Sequence[str], path: Path, *, title: str) -> None:
    """Write an episode as moving picture: what was seen, the futures that were imagined, and the chosen one.

    Args:
        frames: Of the episode.
        names: Of the numbers of a state; the four that vary most are drawn.
        path: File to write, ``.gif`` or ``.mp4``.
        title: Above the picture.

    Raises:
        ConfigError: The file is of neither kind.
        MissingDependencyError: matplotlib or pillow is not installed.
    """
    collections = import_optional("matplotlib.collections", extra="plot", purpose=_PURPOSE)
    whole, horizon = frames[-1].seen, len(frames[0].future)
    drawn = most_varying(whole)
    gif = GifFigure((6, 1.3 * len(drawn) + 0.6), dpi=70)
    gif.figure.suptitle(f"{title}: seen (blue), imagined (grey), chosen (orange)", fontsize=9)
    rows = []
    for axis, index in zip(np.atleast_1d(gif.figure.subplots(len(drawn), 1)), drawn, strict=True):
        low, high = whole[:, index].min(), whole[:, index].max()
        margin = 0.25 * max(high - low, 1e-3)
        axis.set(xlim=(0, len(whole) + horizon), ylim=(low - margin, high + margin), ylabel=names[index])
        others = axis.add_collection(collections.LineCollection([], colors="0.75", linewidths=0.6))
        rows.append((index, others, axis.plot([], [], color="#d55e00")[0], axis.plot([], [], color="#0072b2")[0]))
    for frame in frames:
        now = len(frame.seen) - 1
        ahead = np.arange(now, now + horizon + 1)
        for index, others, chosen, seen in rows:
            present = frame.seen[-1, index]
            begin = np.full((len(frame.others), 1), present)
            curves = np.concatenate([begin, frame.others[:, :, index]], axis=1)
            others.set_segments(np.stack([np.broadcast_to(ahead, curves.shape), curves], axis=-1))
            chosen.set_data(ahead, np.concatenate([[present], frame.future[:, index]]))
            seen.set_data(np.arange(now + 1), frame.seen[:, index])
        gif.take()
    gif.save(path, frame_ms=80)
