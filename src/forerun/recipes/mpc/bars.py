"""What a study was to reach, and whether it did."""

from collections.abc import Mapping
from typing import Any

from forerun.planning.statistics import paired_difference
from forerun.recipes.mpc.evaluate import Score
from forerun.recipes.mpc.studies import Study

_COMPARED = ("data", "cloning", "proposal", "random", "mppi")


def bars(plan: Study, scores: Mapping[str, Score], extras: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every bar with its value, as JSON types.

    Args:
        plan: The study.
        scores: By name.
        extras: As :func:`~forerun.recipes.mpc.reproduce.reproduce` has them.
    """
    found: list[dict[str, Any]] = []

    def add(name: str, value: float | None, *, least: float | None = None, most: float | None = None) -> None:
        is_met = value is not None and (least is None or value >= least) and (most is None or value <= most)
        required = f">= {least:g}" if most is None else f"<= {most:g}"
        found.append({"name": name, "required": required, "value": value, "is_met": is_met})

    ours = scores["ssr"]
    if plan.largest_regret is not None:
        add("regret against the known optimum", ours.regret(scores["optimum"]), most=plan.largest_regret)
    if plan.least_return is not None:
        add("return of SSR", ours.interval.value, least=plan.least_return)
    if plan.least_success is not None:
        add("share of SSR's episodes that succeed", ours.success, least=plan.least_success)
    for name in _COMPARED:
        if name in scores:
            other = scores[name]
            add(f"SSR above {other.summary}: gap of the intervals", ours.interval.low - other.interval.high, least=0)
            paired = paired_difference(ours.returns, other.returns)
            add(f"SSR above {other.summary}, start by start: at least", paired.low, least=0)
    for goal in extras.get("new_goals", ()):
        asked = f"{goal['name']} {goal['value']:g} asked at run time"
        if "tolerance" in goal:
            add(f"{asked}: share of an episode within {goal['tolerance']:g}", goal["met_share"], least=0.7)
        else:
            add(f"{asked}: error over the proposal's", goal["ratio"], most=0.4)
    if "moved_goal" in extras and plan.least_success is not None:
        moved = extras["moved_goal"]
        add("goal moved in mid-episode: share that reach the new one", moved["success"], least=plan.least_success)
    if "constraint" in extras:
        add("hard constraint: share of steps that break it", extras["constraint"]["broken"], most=0.02)
    for found_of in extras.get("adaptation", ()):
        defect, rows = found_of["defect"], found_of["rows"]
        add(f"{defect}: share of the lost return that adapted dynamics recover", rows["ssr"]["recovered"], least=0.5)
        if "joint" in rows:
            more = rows["ssr"]["adapted"] - rows["joint"]["adapted"]
            add(f"{defect}: return with adapted dynamics above the tuned joint model's", more, least=0)
    if plan.plain_way is not None:
        plain, rate = scores[plan.plain_way], extras["rate"]
        gained = paired_difference(ours.returns, plain.returns)
        add(f"return of SSR above {plain.summary}, start by start: at least", gained.low, least=0)
        add(f"speed of SSR over {plain.summary}", rate[plan.plain_way]["cpu_ms"] / rate["ssr"]["cpu_ms"], least=3)
    if plan.least_plans_per_s is not None:
        add("plans of SSR per CPU second", extras["rate"]["ssr"]["per_cpu_s"], least=plan.least_plans_per_s)
    add("speculative planning: hit rate", extras["speculation"]["hit_rate"], least=0.8)
    return found
