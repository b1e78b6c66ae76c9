"""A study as text."""

from collections.abc import Mapping, Sequence
from typing import Any


def result_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the table, what was new, and the bars.

    Args:
        results: As :func:`~forerun.recipes.mpc.reproduce.reproduce` returns them.
    """
    plan = results["study"]
    lines = [f"{plan['task']}: {plan['num_seeds']} seed(s) x {plan['num_episodes']} episodes, interquartile mean [95%]"]
    header, rows = table_cells(results["rows"])
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    for first, *others in (header, *rows):
        rest = "".join(f"  {cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        lines.append(f"{first:<{widths[0]}}{rest}")
    lines += ["", *extra_lines(results["extras"]), ""]
    for bar in results["bars"]:
        verdict = "met   " if bar["is_met"] else "MISSED"
        lines.append(f"{verdict}  {bar['name']}: {bar_value(bar)} (required {bar['required']})")
    return lines


def table_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of the ways to control; a column in which nothing was measured is left out.

    Args:
        rows: As the results have them.
    """
    columns = {
        "way": [row["summary"] for row in rows],
        "return": [f"{row['return']:.3f}" for row in rows],
        "interval": [f"[{row['low']:.3f}, {row['high']:.3f}]" for row in rows],
        "SSR is ahead by": ["" if row["name"] == "ssr" else shown(row["ours_ahead"]) for row in rows],
        "success": ["" if row["success"] is None else f"{row['success']:.0%}" for row in rows],
        "regret": ["" if row["regret"] is None else f"{row['regret']:.3f}" for row in rows],
        "CPU ms": [f"{row['plan_cpu_ms']:.2f}" for row in rows],
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    return list(kept), [list(cells) for cells in zip(*kept.values(), strict=True)]


def bar_value(bar: Mapping[str, Any]) -> str:
    """Return what was measured against a bar, as text."""
    return "not measured" if bar["value"] is None else f"{bar['value']:.3f}"


def extra_lines(extras: Mapping[str, Any]) -> list[str]:
    """Return what was measured beside the comparison, a line for each.

    Args:
        extras: As the results have them.
    """
    lines = []
    for goal in extras.get("new_goals", ()):
        text = (
            f"new reward at run time, {goal['objective']}: error {goal['error']:.3f}, proposal alone "
            f"{goal['proposal_error']:.3f}"
        )
        if "tolerance" in goal:
            text += (
                f"; within {goal['tolerance']:g} in {goal['met_share']:.0%} of an episode, proposal alone "
                f"{goal['proposal_met_share']:.0%}"
            )
        lines.append(text)
    if moved := extras.get("moved_goal"):
        lines.append(f"goal moved in mid-episode: {moved['success']:.0%} reach the new one in what is left")
    if limit := extras.get("constraint"):
        lines.append(
            f"hard constraint {limit['constraint']}: broken in {limit['broken']:.1%} of the steps, without it "
            f"{limit['broken_without']:.1%}; return {limit['return']:.3f}, without it {limit['return_without']:.3f}"
            + ("" if limit["success"] is None else f"; {limit['success']:.0%} succeed, {limit['success_without']:.0%}")
        )
    for damage in extras.get("adaptation", ()):
        tuned = f"tuned on {damage['num_play_episodes']} episodes"
        for way, what in (
            ("ssr", f"dynamics alone {tuned}"),
            ("joint", f"joint model {tuned}"),
            ("ssr-true", "true dynamics, told of it"),
        ):
            if found := damage["rows"].get(way):
                lines.append(
                    f"damage {damage['defect']}, {what}: {found['healthy']:.3f} -> {found['damaged']:.3f} -> "
                    f"{found['adapted']:.3f}; lost {shown(found['lost'])}, came back {shown(found['gained'])}"
                )
    if rate := extras.get("rate"):
        rates = ", ".join(f"{way} {found['per_cpu_s']:.1f}" for way, found in rate.items())
        lines.append(f"plans of one environment per CPU second: {rates}")
    ahead = extras["speculation"]
    missed = "none" if ahead["miss_ms"] is None else f"{ahead['miss_ms']:.2f} ms"
    hit = "none" if ahead["hit_ms"] is None else f"{ahead['hit_ms']:.2f} ms"
    lines.append(
        f"speculative planning: {ahead['hit_rate']:.0%} hits; observation to action {hit} on a hit, {missed} on a "
        f"miss, {ahead['plan_ms']:.2f} ms without; return {ahead['return']:.3f}, without {ahead['return_without']:.3f}"
    )
    return lines


def shown(estimate: Mapping[str, float]) -> str:
    """Return a value with its interval."""
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
