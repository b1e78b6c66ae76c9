"""The phenomena as pictures. Numbers are drawn as they are; which quantity it is stands on the axis."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forerun.core.dependencies import import_optional


def draw_figure(name: str, result: Mapping[str, Any], path: Path) -> None:
    """Draw one phenomenon as PNG.

    Args:
        name: A key of :data:`~forerun.bounds.phenomena.reproduce.PHENOMENA`.
        result: What it measured.
        path: File to write.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figures = import_optional("matplotlib.figure", extra="plot", purpose="a figure")
    figure = figures.Figure(figsize=(10, 4), layout="constrained")
    _DRAWERS[name](figure.subplots(1, 2), result)
    figure.savefig(path, dpi=110)


def _column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


def _draw_benign(axes: Any, result: Mapping[str, Any]) -> None:
    shares = _column(result["rows"], "random_labels")
    axes[0].plot(shares, _column(result["rows"], "training_error"), "o-", label="training error")
    axes[0].plot(shares, _column(result["rows"], "test_error"), "s-", label="test error, clean labels")
    axes[0].set(xlabel="share of random labels", ylabel="error", title="Any labels are fitted")
    axes[0].legend()
    axes[1].plot(shares, _column(result["rows"], "log_evidence_per_example"), "o-")
    axes[1].set(xlabel="share of random labels", ylabel="log evidence per example, nats", title="The evidence tells")


def _draw_descent(axes: Any, result: Mapping[str, Any]) -> None:
    features = _column(result["rows"], "num_features")
    axes[0].semilogx(features, _column(result["rows"], "test_error"), "o-", color="black", label="test error")
    axes[0].set(xlabel="random features", ylabel="test error", title="Double descent, and N_eff")
    beside = axes[0].twinx()
    beside.semilogx(features, _column(result["rows"], "effective_dimension"), "s--", label="N_eff")
    beside.semilogx(features, _column(result["rows"], "complement"), "^:", label="min(n, features) - N_eff")
    beside.set_ylabel(f"directions, z = {result['z']:g} on the mean loss")
    handles = [*axes[0].get_legend_handles_labels()[0], *beside.get_legend_handles_labels()[0]]
    axes[0].legend(handles, [handle.get_label() for handle in handles], fontsize="x-small", loc="center right")
    widths = _column(result["bounds"], "width")
    axes[1].semilogx(widths, _column(result["bounds"], "bound"), "o-", label="certified bound, delta 0.05")
    axes[1].semilogx(widths, _column(result["bounds"], "test_error"), "s-", label="test error, same label noise")
    axes[1].set(xlabel="hidden width", ylabel="error", title="The bound does not grow with the network")
    axes[1].legend()


def _draw_soft(axes: Any, result: Mapping[str, Any]) -> None:
    for axis, rows, group, value, title in (
        (axes[0], result["fits"], "bias", "median_test_rmse", "Polynomials by order, 20 points (log scale)"),
        (axes[1], result["certified"], "prior", "bound", "Certified error by prior"),
    ):
        names = list(dict.fromkeys(_column(rows, group)))
        targets = list(dict.fromkeys(_column(rows, "target")))
        for shift, target in enumerate(targets):
            heights = [row[value] for row in rows if row["target"] == target]
            axis.bar([place + 0.4 * shift for place in range(len(names))], heights, 0.38, label=f"{target} target")
        axis.set_xticks([place + 0.2 for place in range(len(names))], names, fontsize=7)
        axis.set(ylabel=value.replace("_", " "), title=title)
        axis.margins(y=0.25)
        axis.legend(ncols=len(targets))
    axes[0].set_yscale("log")


def _draw_compressibility(axes: Any, result: Mapping[str, Any]) -> None:
    target = f"{result['target_error']:.0%}"
    for axis, name, label, title in (
        (axes[0], "bits_at_target", "bits", f"Shortest message with a training error up to {target}"),
        (axes[1], "least_bound", "error", "Least certified bound, delta 0.05"),
    ):
        rows = [row for row in result["by_width"] if None not in row[name]]
        widths, values = _column(rows, "width"), [sorted(row[name]) for row in rows]
        middle = [sum(value) / len(value) for value in values]
        spread = [[at - value[0] for at, value in zip(middle, values, strict=True)],
                  [value[-1] - at for at, value in zip(middle, values, strict=True)]]  # fmt: skip
        axis.errorbar(widths, middle, yerr=spread, fmt="o-", capsize=4)
        axis.set_xscale("log", base=2)
        axis.set_xticks(_column(result["by_width"], "width"), _column(result["by_width"], "width"))
        axis.set_ylim(bottom=0)
        missing = [str(row["width"]) for row in result["by_width"] if None in row[name]]
        note = f"; none at {' and '.join(missing)}" if missing else ""
        axis.set(xlabel=f"hidden width (mean and range of {len(values[0])} splits{note})", ylabel=label, title=title)


_DRAWERS = {
    "benign_overfitting": _draw_benign,
    "double_descent": _draw_descent,
    "soft_bias": _draw_soft,
    "compressibility": _draw_compressibility,
}
