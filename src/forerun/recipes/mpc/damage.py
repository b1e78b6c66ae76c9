"""Damage the task, measure what it costs, tune on play data, measure what comes back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from forerun.envs.control_dynamics import FaultyDynamics
from forerun.planning.statistics import paired_difference
from forerun.recipes.mpc.adapt import AdaptConfig, adapt, adapt_joint
from forerun.recipes.mpc.collect import collect
from forerun.recipes.mpc.contenders import Setting, task_objective, true_dynamics
from forerun.recipes.mpc.evaluate import Score, score
from forerun.recipes.mpc.parts import Parts
from forerun.recipes.mpc.prepare import Prepared, damaged
from forerun.recipes.mpc.studies import Study


def measure_adaptation(
    plan: Study,
    settings: Sequence[Setting],
    pairs: Sequence[Prepared],
    healthy: dict[str, Score],
    parts: Parts,
    defect: str,
) -> dict[str, Any]:
    """Tune only the dynamics, and beside it the joint model, on the same play data.

    Args:
        plan: The study.
        settings: One for each training seed.
        pairs: What they were made from.
        healthy: Scores without the damage, of ``ssr`` and, where they are there, ``joint`` and ``ssr-true``.
        parts: Where measured scores are kept.
        defect: Name of the damage.

    Returns:
        For each of these ways, as JSON types: returns healthy, damaged, adapted; what was lost and what adapting
        gained, start by start, and the ratio of both where the damage costs anything for certain. ``ssr-true`` is not
        tuned but told of the damage: no tuned dynamics can bring back more with these proposals and this objective.
    """
    task = settings[0].task
    fault, make_env = task.defect(defect), damaged(task, defect)
    tuned_ways = tuple(way for way in ("ssr", "joint") if way in healthy)
    errors: dict[str, list[list[float]]] = {way: [] for way in tuned_ways}

    def measured(name: str, ways: Sequence[str], of: Sequence[Setting]) -> dict[str, Score]:
        kept = {
            way: parts.get(
                f"{name}-{defect}-{way}",
                lambda way=way: score(way, of, num_episodes=plan.num_episodes, make_env=make_env).as_json(),
            )
            for way in ways
        }
        return {way: Score.from_json(record) for way, record in kept.items()}

    ways = (*tuned_ways, "ssr-true") if "ssr-true" in healthy else tuned_ways
    before = measured("damaged", ways, settings)
    tuned: list[Setting] = []
    for seed, (setting, made) in enumerate(zip(settings, pairs, strict=True)):
        play = collect(
            task,
            num_episodes=plan.num_play_episodes,
            seed=seed,
            make_env=make_env,
            purpose="play with the defect",
        )
        config = AdaptConfig(seed=seed, batch_size=plan.batch_size, num_rounds=plan.num_adapt_rounds)
        found = adapt(setting.bundle, play, replay=made.data, config=config)
        errors["ssr"].append(list(found.errors))
        joint = setting.joint
        if joint is not None:
            joint, joint_errors = adapt_joint(joint, setting.bundle, play, replay=made.data, config=config)
            errors["joint"].append(list(joint_errors))
        objective = task_objective(task, found.bundle)
        tuned.append(replace(setting, bundle=found.bundle, joint=joint, objective=objective))
    after = measured("adapted", tuned_ways, tuned)
    if "ssr-true" in ways:
        bounds = task.bounds
        told = [
            replace(setting, true_dynamics=FaultyDynamics(true_dynamics(setting), fault, bounds=bounds))
            for setting in settings
        ]
        after |= measured("told", ("ssr-true",), told)
    rows = {way: _row(healthy[way], before[way], after[way]) for way in ways}
    for way in tuned_ways:
        rows[way]["held_out_errors"] = errors[way]
    return {"defect": defect, "fault": str(fault), "num_play_episodes": plan.num_play_episodes, "rows": rows}


def _row(healthy: Score, harmed: Score, mended: Score) -> dict[str, Any]:
    lost = paired_difference(healthy.returns, harmed.returns)
    gained = paired_difference(mended.returns, harmed.returns)
    return {
        "healthy": healthy.interval.value,
        "damaged": harmed.interval.value,
        "adapted": mended.interval.value,
        "lost": lost.as_json(),
        "gained": gained.as_json(),
        "recovered": gained.value / lost.value if lost.low > 0 else None,
    }
