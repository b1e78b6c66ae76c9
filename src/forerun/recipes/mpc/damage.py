"""Damage the task, measure what it costs, tune on play data, measure what comes back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from forerun.planning.statistics import paired_difference
from forerun.recipes.mpc.adapt import AdaptConfig, adapt, adapt_joint
from forerun.recipes.mpc.collect import collect
from forerun.recipes.mpc.contenders import Setting, task_objective
from forerun.recipes.mpc.evaluate import Score, score
from forerun.recipes.mpc.parts import Parts
from forerun.recipes.mpc.prepare import Prepared, damaged
from forerun.recipes.mpc.studies import Study


def measure_adaptation(
    plan: Study, settings: Sequence[Setting], pairs: Sequence[Prepared], healthy: dict[str, Score], parts: Parts
) -> dict[str, Any]:
    """Tune only the dynamics, and beside it the joint model, on the same play data.

    Args:
        plan: The study.
        settings: One for each training seed.
        pairs: What they were made from.
        healthy: Scores without the damage, of ``ssr`` and, where there is one, ``joint``.
        parts: Where measured scores are kept.

    Returns:
        For ``ssr`` and ``joint``, as JSON types: returns healthy, damaged, adapted; what was lost and what adapting
        gained, start by start, and the ratio of both where the damage costs anything for certain.
    """
    task, make_env = settings[0].task, damaged(settings[0].task)
    has_joint = settings[0].joint is not None
    tuned: list[Setting] = []
    errors: dict[str, list[list[float]]] = {"ssr": [], "joint": []}

    def measured(name: str, of: Sequence[Setting]) -> list[Score]:
        ways = ("ssr", "joint") if has_joint else ("ssr",)
        kept = [
            parts.get(
                f"{name}-{way}",
                lambda way=way: score(way, of, num_episodes=plan.num_episodes, make_env=make_env).as_json(),
            )
            for way in ways
        ]
        return [Score.from_json(record) for record in kept]

    before = measured("damaged", settings)
    for seed, (setting, made) in enumerate(zip(settings, pairs, strict=True)):
        play = collect(
            task,
            num_episodes=plan.num_play_episodes,
            seed=seed,
            env=make_env(plan.num_play_episodes),
            purpose="play with the defect",
        )
        config = AdaptConfig(seed=seed, batch_size=plan.batch_size)
        found = adapt(setting.bundle, play, replay=made.data, config=config)
        errors["ssr"].append(list(found.errors))
        joint = setting.joint
        if joint is not None:
            joint, joint_errors = adapt_joint(joint, setting.bundle, play, replay=made.data, config=config)
            errors["joint"].append(list(joint_errors))
        objective = task_objective(task, found.bundle)
        tuned.append(replace(setting, bundle=found.bundle, joint=joint, objective=objective))
    after = measured("adapted", tuned)
    found = {}
    for way, harmed, mended in zip(("ssr", "joint"), before, after, strict=False):
        lost = paired_difference(healthy[way].returns, harmed.returns)
        gained = paired_difference(mended.returns, harmed.returns)
        found[way] = {
            "healthy": healthy[way].interval.value,
            "damaged": harmed.interval.value,
            "adapted": mended.interval.value,
            "lost": lost.as_json(),
            "gained": gained.as_json(),
            "recovered": gained.value / lost.value if lost.low > 0 else None,
            "held_out_errors": errors[way],
        }
    return found | {"num_play_episodes": plan.num_play_episodes, "fault": str(task.defect)}
