"""A study as text."""

from collections.abc import Mapping
from typing import Any


def result_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the table, what was new, and the bars.

    Args:
        results: As :func:`~forerun.recipes.mpc.reproduce.reproduce` returns them.
    """
    plan = results["study"]
    lines = [
        f"{plan['task']}: {plan['num_seeds']} seed(s) x {plan['num_episodes']} episodes, interquartile mean [95%]",
        f"{'':55}{'return':>10}  {'interval':<22}{'SSR is ahead by':<28}{'regret':>8}{'CPU ms':>9}",
    ]
    for row in results["rows"]:
        summary, value, interval, ahead, regret, cost = row_cells(row)
        lines.append(f"{summary:<55}{value:>10}  {interval:<22}{ahead:<28}{regret:>8}{cost:>9}")
    lines += ["", *extra_lines(results["extras"]), ""]
    for bar in results["bars"]:
        verdict = "met   " if bar["is_met"] else "MISSED"
        lines.append(f"{verdict}  {bar['name']}: {bar_value(bar)} (required {bar['required']})")
    return lines


def row_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    """Return the cells of a way to control: summary, return, interval, how far SSR is ahead, regret, CPU ms."""
    return (
        row["summary"],
        f"{row['return']:.3f}",
        f"[{row['low']:.3f}, {row['high']:.3f}]",
        "" if row["name"] == "ssr" else shown(row["ours_ahead"]),
        "" if row["regret"] is None else f"{row['regret']:.3f}",
        f"{row['plan_cpu_ms']:.2f}",
    )


def bar_value(bar: Mapping[str, Any]) -> str:
    """Return what was measured against a bar, as text."""
    return "not measured" if bar["value"] is None else f"{bar['value']:.3f}"


def extra_lines(extras: Mapping[str, Any]) -> list[str]:
    """Return what was measured beside the comparison, a line for each.

    Args:
        extras: As the results have them.
    """
    lines = []
    lines += [
        f"new reward at run time, {goal['objective']}: error {goal['error']:.3f}, proposal alone "
        f"{goal['proposal_error']:.3f}"
        for goal in extras.get("new_goals", ())
    ]
    if limit := extras.get("constraint"):
        lines.append(
            f"hard constraint {limit['constraint']}: broken in {limit['broken']:.1%} of the steps, without it "
            f"{limit['broken_without']:.1%}; return {limit['return']:.3f}, without it {limit['return_without']:.3f}"
        )
    if adaptation := extras.get("adaptation"):
        count = adaptation["num_play_episodes"]
        for key, what in (("ssr", "dynamics alone"), ("joint", "joint model")):
            if found := adaptation.get(key):
                lines.append(
                    f"damaged actuator, {what} tuned on {count} episodes: {found['healthy']:.3f} -> "
                    f"{found['damaged']:.3f} -> {found['adapted']:.3f}; lost {shown(found['lost'])}, came back "
                    f"{shown(found['gained'])}"
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
