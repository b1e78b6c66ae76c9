"""Charts as SVG text: points with intervals, lines, a legend; every point a link with its numbers on hover."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

COLORS: Final = tuple(
    f"var(--series-{number}, {color})"
    for number, color in enumerate(("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"), start=1)
)
"""Told apart by people with any colour vision (Okabe and Ito); a page may set its own, as for a dark ground."""

_WIDTH, _HEIGHT = 620, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 16, 48
_LEGEND_ROW = 18
_MOST_TICKS = 6
_LEAST_LABEL_GAP = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A point.

    Attributes:
        x: Above 0.
        y: Its value.
        low: Low end of its interval; ``None`` if there is none.
        high: High end.
        link: Where a click leads.
        hover: What it says on hover.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    link: str | None = None
    hover: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one colour.

    Attributes:
        name: In the legend.
        points: In the order of their line.
        is_dashed: Whether its line is dashed and its points are hollow, for what nobody observed.
    """

    name: str
    points: Sequence[Point]
    is_dashed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """What the axes say.

    Attributes:
        x_label: Below.
        y_label: Beside.
        is_x_log: Whether x is on a logarithmic scale.
    """

    x_label: str
    y_label: str
    is_x_log: bool = True


def chart_svg(series: Sequence[Series], axes: Axes, *, title: str) -> str:
    """Return a chart as an ``<svg>`` element.

    Args:
        series: At least one point in all.
        axes: Their labels.
        title: For those who can't see it.
    """
    points = [point for item in series for point in item.points]
    frame = _Frame(points, axes, num_legend_rows=len(series))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {frame.height}" role="img" aria-label="{escape(title, quote=True)}">',
        *frame.grid(),
    ]
    for place, item in enumerate(series):
        color = COLORS[place % len(COLORS)]
        parts.extend(_line(item, frame, color))
        parts.extend(_mark(point, frame, color, is_hollow=item.is_dashed) for point in item.points)
        row = _HEIGHT + place * _LEGEND_ROW
        parts.append(
            f'<circle cx="{_LEFT + 6}" cy="{row}" r="4.5" stroke="{color}" stroke-width="2" '
            f'fill="{"var(--page)" if item.is_dashed else color}"/>'
            f'<text x="{_LEFT + 18}" y="{row + 4}">{escape(item.name)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


class _Frame:
    """Maps values to places and draws what is behind the points."""

    def __init__(self, points: Sequence[Point], axes: Axes, *, num_legend_rows: int) -> None:
        self._axes = axes
        self.height = _HEIGHT + num_legend_rows * _LEGEND_ROW
        self._xs = sorted({point.x for point in points})
        ends = [self._scaled(x) for x in (self._xs[0], self._xs[-1])]
        pad = 0.06 * (ends[1] - ends[0]) or 0.5
        self._x_range = (ends[0] - pad, ends[1] + pad)
        values = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
        margin = 0.08 * (max(values) - min(values)) or 0.1
        self._y_range = (min(values) - margin, max(values) + margin)

    def _scaled(self, x: float) -> float:
        return math.log(x) if self._axes.is_x_log else x

    def x(self, value: float) -> float:
        low, high = self._x_range
        return _LEFT + (self._scaled(value) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y_range
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM - 24)

    def grid(self) -> list[str]:
        bottom = _HEIGHT - _BOTTOM - 24
        parts: list[str] = []
        for value in _ticks(*self._y_range):
            place = f"{self.y(value):.1f}"
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place}" y2="{place}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{float(place) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
        last_label = -math.inf
        for value in self._xs:
            x = self.x(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
            if x - last_label >= _LEAST_LABEL_GAP:
                parts.append(f'<text x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{_short(value)}</text>')
                last_label = x
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{bottom + 38}" text-anchor="middle">{escape(self._axes.x_label)}</text>')
        height = (_TOP + bottom) / 2
        parts.append(
            f'<text transform="translate(14 {height}) rotate(-90)" text-anchor="middle">'
            f"{escape(self._axes.y_label)}</text>"
        )
        return parts


def _line(item: Series, frame: _Frame, color: str) -> list[str]:
    if len(item.points) < 2:
        return []
    places = " ".join(f"{frame.x(point.x):.1f},{frame.y(point.y):.1f}" for point in item.points)
    dash = ' stroke-dasharray="5 4"' if item.is_dashed else ""
    return [f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="1.5"{dash}/>']


def _mark(point: Point, frame: _Frame, color: str, *, is_hollow: bool) -> str:
    x, y = frame.x(point.x), frame.y(point.y)
    fill = "var(--page)" if is_hollow else color
    drawn = ""
    if point.low is not None and point.high is not None:
        drawn = (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(point.low):.1f}" y2="{frame.y(point.high):.1f}" '
            f'stroke="{color}" stroke-width="1.5" opacity="0.6"/>'
        )
    drawn += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{color}" stroke-width="2"/>'
    drawn = f"<g><title>{escape(point.hover)}</title>{drawn}</g>"
    return drawn if point.link is None else f'<a href="{escape(point.link, quote=True)}">{drawn}</a>'


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / _MOST_TICKS
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [round(step * number, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: float) -> str:
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"
