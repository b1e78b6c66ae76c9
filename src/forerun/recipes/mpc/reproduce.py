"""A task from nothing to a table: collect, train, compare, ask for something new, damage, adapt."""

from pathlib import Path
from typing import Any

import numpy as np

from forerun.core.atomic_files import write_json_file
from forerun.data.trajectories import Trajectories
from forerun.envs.control_tasks import control_task
from forerun.recipes.decode_benchmark.machine import machine_manifest
from forerun.recipes.mpc.bars import bars
from forerun.recipes.mpc.contenders import CONTENDERS, Setting, task_objective
from forerun.recipes.mpc.damage import measure_adaptation
from forerun.recipes.mpc.evaluate import Score, score
from forerun.recipes.mpc.novelty import (
    measure_constraint,
    measure_moved_goal,
    measure_new_goals,
    measure_speculation,
)
from forerun.recipes.mpc.parts import Parts
from forerun.recipes.mpc.prepare import Prepared, prepared
from forerun.recipes.mpc.rate import measure_rate
from forerun.recipes.mpc.studies import Study
from forerun.worldmodels.diffusion.train import Report


def reproduce(plan: Study, folder: Path, *, report: Report = lambda name, done, total, detail: None) -> dict[str, Any]:
    """Run a study and write ``results.json``; what was done before, models and measurements, is used again.

    Args:
        plan: What to do.
        folder: Made if it is not there.
        report: Told of progress.

    Returns:
        Rows, extras and bars, as JSON types.

    Raises:
        ConfigError: The folder can't be written, or has parts of another study.
    """
    task = control_task(plan.task)
    identity = {"study": {name: value for name, value in plan.as_json().items() if name in _IDENTIFYING}}
    parts = Parts(folder / "parts", identity)
    pairs = [prepared(plan, task, folder, seed, report) for seed in range(plan.num_seeds)]
    settings = [
        Setting(task=task, bundle=made.bundle, objective=task_objective(task, made.bundle), joint=made.joint)
        for made in pairs
    ]
    by_name: dict[str, Score] = {}
    run: dict[str, list[Trajectories]] = {way: [] for way in plan.ways}
    for place, way in enumerate(plan.ways):
        record = parts.get(
            f"way-{way}",
            lambda way=way: score(way, settings, num_episodes=plan.num_episodes, on_episodes=run[way].append).as_json(),
        )
        by_name[way] = Score.from_json(record)
        report("compare", place + 1, len(plan.ways), f"{way} {by_name[way].interval.value:.3f}")
    extras = _extras(plan, settings, pairs, by_name, run["ssr"], parts, report)
    ours, optimum = by_name["ssr"], by_name.get("optimum")
    results = {
        "study": plan.as_json(),
        "machine": machine_manifest(),
        "data": [_data_facts(made) for made in pairs],
        "rows": [found.beside(ours, optimum) for found in by_name.values()],
        "extras": extras,
        "bars": bars(plan, by_name, extras),
    }
    write_json_file(folder / "results.json", results)
    return results


_IDENTIFYING = ("task", "scale", "num_train_steps", "batch_size", "num_seeds", "num_episodes", "num_play_episodes")
"""Options on which a measured part depends; the others say which parts there are."""


def _extras(
    plan: Study,
    settings: list[Setting],
    pairs: list[Prepared],
    by_name: dict[str, Score],
    run: list[Trajectories],
    parts: Parts,
    report: Report,
) -> dict[str, Any]:
    """Return what is measured beside the comparison.

    Args:
        plan: The study.
        settings: One for each training seed.
        pairs: What they were made from.
        by_name: The comparison's scores.
        run: Episodes of ``ssr`` for each training seed, where they were run just now.
        parts: Where measured parts are kept.
        report: Told of progress.
    """
    first, extras = settings[0], {}
    if plan.new_goals:
        extras["new_goals"] = parts.get(
            "new-goals",
            lambda: list(measure_new_goals(first, goals=plan.new_goals, num_episodes=plan.num_episodes, seed=0)),
        )
        report("ask for something new", 1, 3, "")
    if first.task.goal:
        extras["moved_goal"] = parts.get(
            "moved-goal", lambda: measure_moved_goal(first, num_episodes=plan.num_episodes, seed=0)
        )
    if plan.constraint is not None:
        constraint = plan.constraint
        extras["constraint"] = parts.get(
            "constraint",
            lambda: measure_constraint(
                first,
                constraint=constraint,
                num_episodes=plan.num_episodes,
                seed=0,
                without=run[0] if run else None,
            ),
        )
    planning = {way: CONTENDERS[way] for way in plan.ways if CONTENDERS[way].planner is not None}
    extras["rate"] = parts.get("rate", lambda: measure_rate(first, pairs[0].data, planning))
    report("rate", 2, 3, "")
    extras["speculation"] = parts.get("speculation", lambda: measure_speculation(first, num_episodes=2, seed=0))
    report("plan ahead", 3, 3, "")
    if plan.num_play_episodes:
        extras["adaptation"] = []
        for place, defect in enumerate(first.task.defects):
            extras["adaptation"].append(
                parts.get(
                    f"adaptation-{defect}",
                    lambda defect=defect: measure_adaptation(plan, settings, pairs, by_name, parts, defect),
                )
            )
            report("adapt", place + 1, len(first.task.defects), defect)
    return extras


def _data_facts(made: Prepared) -> dict[str, Any]:
    returns = made.data.returns
    return {
        "digest": made.data.digest(),
        "num_steps": made.data.num_steps,
        "num_episodes": len(returns),
        "mean_return": float(returns.mean()),
        "p90_return": float(np.quantile(returns, 0.9)),
        "best_return": float(returns.max()),
    }
