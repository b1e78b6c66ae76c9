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
        f"{'':55}{'return':>10}  {'interval':<22}{'regret':>8}{'CPU ms/plan':>13}",
    ]
    for row in results["rows"]:
        regret = "" if row["regret"] is None else f"{row['regret']:.3f}"
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(
            f"{row['summary']:<55}{row['return']:>10.3f}  {interval:<22}{regret:>8}{row['plan_cpu_ms']:>13.2f}"
        )
    lines += ["", *_extra_lines(results["extras"]), ""]
    for bar in results["bars"]:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.3f}"
        lines.append(f"{'met   ' if bar['is_met'] else 'MISSED'}  {bar['name']}: {value} (required {bar['required']})")
    return lines


def _extra_lines(extras: Mapping[str, Any]) -> list[str]:
    lines = []
    if goal := extras.get("new_goal"):
        lines.append(
            f"new reward at run time, {goal['objective']}: error {goal['error']:.3f}, proposal alone "
            f"{goal['proposal_error']:.3f}"
        )
    if limit := extras.get("constraint"):
        lines.append(
            f"hard constraint {limit['constraint']}: broken in {limit['broken']:.1%} of the steps, without it "
            f"{limit['broken_without']:.1%}"
        )
    if adaptation := extras.get("adaptation"):
        lines.append(
            f"clipped actuator: {adaptation['healthy']:.3f} -> {adaptation['damaged']:.3f}, dynamics tuned on "
            f"{adaptation['num_play_episodes']} episodes: {adaptation['adapted']:.3f}"
        )
    ahead = extras["speculation"]
    missed = "none" if ahead["miss_ms"] is None else f"{ahead['miss_ms']:.2f} ms"
    hit = "none" if ahead["hit_ms"] is None else f"{ahead['hit_ms']:.2f} ms"
    lines.append(
        f"speculative planning: {ahead['hit_rate']:.0%} hits; observation to action {hit} on a hit, {missed} on a "
        f"miss, {ahead['plan_ms']:.2f} ms without; return {ahead['return']:.3f}, without {ahead['return_without']:.3f}"
    )
    return lines
