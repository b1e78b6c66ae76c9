"""The picture of a result: speed of every engine, and acceptance by kind of prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forerun.core.dependencies import import_optional

_OWN, _PEER = "#1f6f8b", "#b8b8b8"
_RATES = (("acceptance_rate", "accepted draft tokens", "#1f6f8b"), ("cache_hit_rate", "outcome predicted", "#e0a030"))


def plot_results(summary: Mapping[str, Any], path: Path) -> None:
    """Draw the greedy results.

    Args:
        summary: From :func:`forerun.recipes.decode_benchmark.summary.summarise`.
        path: The image; its suffix says which format.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figures = import_optional("matplotlib.figure", extra="plot", purpose="the benchmark's plot")
    figure = figures.Figure(figsize=(11, 4.5), layout="constrained")
    speeds, rates = figure.subplots(1, 2, width_ratios=(1, 1))
    _draw_speeds(speeds, summary)
    _draw_rates(rates, summary)
    figure.savefig(path, dpi=150)


def _draw_speeds(axes: Any, summary: Mapping[str, Any]) -> None:
    found = summary["greedy"]["engines"]
    order = sorted(found, key=lambda name: found[name]["tokens_per_s"])
    labels = [summary["engines"][name]["label"] for name in order]
    values = [found[name]["tokens_per_s"] for name in order]
    colours = [_OWN if summary["engines"][name]["is_own"] else _PEER for name in order]
    bars = axes.barh(labels, values, color=colours)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel("tokens per second, greedy (decode only)")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_rates(axes: Any, summary: Mapping[str, Any]) -> None:
    width = 0.8 / len(_RATES)
    by_kind = summary["greedy"]["engines"].get("ssd", {}).get("by_kind", {})
    for index, (field, label, colour) in enumerate(_RATES):
        places = [place + index * width for place in range(len(by_kind))]
        axes.bar(places, [statistics[field] for statistics in by_kind.values()], width, color=colour, label=label)
    axes.set_xticks([place + width * (len(_RATES) - 1) / 2 for place in range(len(by_kind))], list(by_kind))
    axes.set_ylim(0, 1)
    axes.set_ylabel("share, SSD greedy")
    axes.tick_params(axis="x", rotation=20)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
