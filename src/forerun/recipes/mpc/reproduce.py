"""A task from nothing to a table: collect, train, compare, ask for something new, damage, adapt."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from forerun.core.atomic_files import write_json_file
from forerun.core.config import unknown_name
from forerun.core.errors import ConfigError
from forerun.data.trajectories import Trajectories
from forerun.envs.control_env import BatchEnv, ClippedActuator
from forerun.envs.control_task import ControlTask
from forerun.envs.control_tasks import control_task
from forerun.recipes.decode_benchmark.machine import machine_manifest
from forerun.recipes.mpc.adapt import AdaptConfig, adapt
from forerun.recipes.mpc.collect import collect
from forerun.recipes.mpc.contenders import CONTENDERS, Setting, task_objective
from forerun.recipes.mpc.evaluate import Score, score
from forerun.recipes.mpc.novelty import measure_constraint, measure_new_goal, measure_speculation
from forerun.worldmodels.diffusion.bundle import ModelBundle
from forerun.worldmodels.diffusion.config import ScaleName, dmpc_config
from forerun.worldmodels.diffusion.train import DmpcTrainingConfig, ModelTrainer

Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What is done for a task.

    Attributes:
        task: Its name.
        scale: Of the models.
        num_train_steps: Optimiser steps of each model.
        batch_size: Windows of a step.
        num_seeds: Data sets and trainings.
        num_episodes: Evaluated for each of them.
        ways: Ways to control that are compared.
        new_goal: A number of the state, and the value that is asked of it at run time.
        constraint: A hard constraint that is imposed at run time; ``None``: none.
        num_play_episodes: Of the damaged task, to adapt on; 0 leaves the damage out.
        largest_regret: Against the known optimum; ``None`` where there is none.
    """

    task: str
    scale: ScaleName
    num_train_steps: int
    batch_size: int
    num_seeds: int
    num_episodes: int
    ways: tuple[str, ...]
    new_goal: tuple[str, float] | None = None
    constraint: str | None = None
    num_play_episodes: int = 0
    largest_regret: float | None = None


_QUICK: Final = ("data", "cloning", "proposal", "random", "mppi", "ssr-paper", "ssr", "ssr-true", "optimum")
STUDIES: Final[dict[str, Study]] = {
    "smoke": Study(
        task="double-integrator",
        scale="smoke",
        num_train_steps=600,
        batch_size=128,
        num_seeds=1,
        num_episodes=20,
        ways=_QUICK,
        new_goal=("position", 0.4),
        constraint="keep_out(velocity=(-2.0, -0.15))",
        num_play_episodes=40,
        largest_regret=0.25,
    ),
    "pendulum": Study(
        task="pendulum",
        scale="smoke",
        num_train_steps=3000,
        batch_size=256,
        num_seeds=3,
        num_episodes=20,
        ways=tuple(CONTENDERS),
        num_play_episodes=60,
        largest_regret=0.25,
    ),
    "halfcheetah-quick": Study(
        task="halfcheetah",
        scale="smoke",
        num_train_steps=600,
        batch_size=128,
        num_seeds=1,
        num_episodes=4,
        ways=("data", "cloning", "proposal", "ssr-paper", "ssr"),
        new_goal=("x_velocity", 0.5),
    ),
    "halfcheetah": Study(
        task="halfcheetah",
        scale="small",
        num_train_steps=2000,
        batch_size=256,
        num_seeds=1,
        num_episodes=8,
        ways=("data", "cloning", "proposal", "mppi", "ssr-one-step", "ssr-paper", "ssr"),
        new_goal=("x_velocity", 0.5),
        num_play_episodes=60,
    ),
}
"""Studies by the name the command line gives them."""


def study(name: str) -> Study:
    """Return a study.

    Args:
        name: A key of :data:`STUDIES`.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    return STUDIES[name]


def train_bundle(
    task: ControlTask,
    data: Trajectories,
    *,
    scale: ScaleName,
    training: DmpcTrainingConfig,
    directory: Path | None = None,
    report: Report = lambda name, done, total, detail: None,
) -> ModelBundle:
    """Train every model of a task.

    Args:
        task: Names, bounds, horizon, discount.
        data: To learn from.
        scale: Of the models.
        training: How.
        directory: For checkpoints; ``None`` keeps none.
        report: Told of progress.
    """
    config = dmpc_config(scale, history=1, horizon=task.horizon, discount=task.discount)
    trainer = ModelTrainer(data, task.bounds, config=config, training=training, directory=directory, report=report)
    return ModelBundle.trained(trainer, task=task.name, bounds=task.bounds)


def damaged(task: ControlTask) -> Callable[[int], BatchEnv]:
    """Return what makes the task with its defect.

    Raises:
        ConfigError: The task has none.
    """
    defect = task.defect
    if defect is None:
        raise ConfigError(f"{task.name}: no defect is known for it")
    return lambda num_envs: ClippedActuator(task.make_env(num_envs), limit=defect.limit, indices=defect.indices)


def reproduce(plan: Study, folder: Path, *, report: Report = lambda name, done, total, detail: None) -> dict[str, Any]:
    """Run a study and write ``results.json`` and the models of its first seed.

    Args:
        plan: What to do.
        folder: Made if it is not there; data and models that are there are used again.
        report: Told of progress.

    Returns:
        Rows, extras and bars, as JSON types.

    Raises:
        ConfigError: The folder can't be written.
    """
    task = control_task(plan.task)
    manifest = machine_manifest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error
    pairs = [_prepared(plan, task, folder, seed, report) for seed in range(plan.num_seeds)]
    settings = [Setting(task=task, bundle=bundle, objective=task_objective(task, bundle)) for bundle, _ in pairs]
    scores: list[Score] = []
    for place, way in enumerate(plan.ways):
        scores.append(score(way, settings, num_episodes=plan.num_episodes))
        report("compare", place + 1, len(plan.ways), f"{way} {scores[-1].interval.value:.3f}")
    by_name = {found.name: found for found in scores}
    optimum = by_name.get("optimum")
    extras: dict[str, Any] = {}
    if plan.new_goal is not None:
        name, value = plan.new_goal
        extras["new_goal"] = measure_new_goal(
            settings[0], name=name, value=value, num_episodes=plan.num_episodes, seed=0
        )
    if plan.constraint is not None:
        extras["constraint"] = measure_constraint(
            settings[0], constraint=plan.constraint, num_episodes=plan.num_episodes, seed=0
        )
    extras["speculation"] = measure_speculation(settings[0], num_episodes=2, seed=0)
    report("ask for something new", 1, 1, "")
    if plan.num_play_episodes:
        extras["adaptation"] = _measured_adaptation(plan, settings, [data for _, data in pairs], by_name["ssr"])
        report("adapt", 1, 1, "")
    results = {
        "study": {name: getattr(plan, name) for name in ("task", "scale", "num_train_steps", "batch_size", "num_seeds")}
        | {"num_episodes": plan.num_episodes},
        "machine": manifest,
        "data": [{"digest": data.digest(), "num_steps": data.num_steps} for _, data in pairs],
        "rows": [found.as_json(optimum) for found in scores],
        "extras": extras,
        "bars": bars(plan, by_name, extras),
    }
    write_json_file(folder / "results.json", results)
    return results


def bars(plan: Study, scores: dict[str, Score], extras: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was to be reached, and whether it was.

    Args:
        plan: The study.
        scores: By name.
        extras: As :func:`reproduce` has them.
    """
    found = []

    def add(name: str, required: str, value: float | None, is_met: bool) -> None:
        found.append({"name": name, "required": required, "value": value, "is_met": is_met})

    ours = scores["ssr"]
    if plan.largest_regret is not None:
        regret = ours.regret(scores["optimum"])
        add("regret against the known optimum", f"<= {plan.largest_regret:g}", regret, regret <= plan.largest_regret)
    for name in ("data", "cloning", "proposal", "random", "mppi"):
        if name in scores:
            gap = ours.interval.low - scores[name].interval.high
            add(f"SSR above {scores[name].summary}, outside intervals", "> 0", gap, gap > 0)
    if "new_goal" in extras:
        ratio = extras["new_goal"]["ratio"]
        add("new goal: error over the proposal's", "<= 0.4", ratio, ratio <= 0.4)
    if "constraint" in extras:
        broken = extras["constraint"]["broken"]
        add("hard constraint: share of steps that break it", "<= 0.02", broken, broken <= 0.02)
    if "adaptation" in extras:
        recovered = extras["adaptation"]["recovered"]
        add(
            "adapted dynamics: share of the lost return recovered",
            ">= 0.5",
            recovered,
            recovered is not None and recovered >= 0.5,
        )
    rate = extras["speculation"]["hit_rate"]
    add("speculative planning: hit rate", ">= 0.8", rate, rate >= 0.8)
    return found


def _prepared(
    plan: Study, task: ControlTask, folder: Path, seed: int, report: Report
) -> tuple[ModelBundle, Trajectories]:
    """Return models and data of a seed: those of the folder, or new ones."""
    data_file, model_folder = folder / f"data-{seed}.npz", folder / f"models-{seed}"
    if data_file.exists():
        data = Trajectories.load(data_file)
    else:
        data = collect(
            task,
            num_episodes=task.num_episodes,
            seed=seed,
            on_step=lambda step: report(f"collect, seed {seed}", step, task.num_steps, ""),
        )
        data.save(data_file)
    training = DmpcTrainingConfig(num_steps=plan.num_train_steps, batch_size=plan.batch_size, seed=seed)
    identity = {
        "digest": data.digest(),
        "num_train_steps": plan.num_train_steps,
        "batch_size": plan.batch_size,
        "scale": plan.scale,
    }
    if model_folder.exists():
        kept = json.loads((model_folder / "manifest.json").read_text(encoding="utf-8"))["record"]
        if kept != identity:
            raise ConfigError(f"{model_folder}: was made with {kept}, this run has {identity}; name another folder")
        return ModelBundle.load(model_folder), data
    bundle = train_bundle(
        task,
        data,
        scale=plan.scale,
        training=training,
        directory=folder / f"checkpoints-{seed}",
        report=lambda name, done, total, detail: report(f"train {name}, seed {seed}", done, total, detail),
    )
    bundle.save(model_folder, record=identity)
    return bundle, data


def _measured_adaptation(
    plan: Study, settings: Sequence[Setting], data: Sequence[Trajectories], healthy: Score
) -> dict[str, Any]:
    """Damage the task, measure, tune the dynamics on play data of the first seed, measure again."""
    task, make_env = settings[0].task, damaged(settings[0].task)
    before = score("ssr", settings, num_episodes=plan.num_episodes, make_env=make_env)
    tuned, errors = [], []
    for seed, (setting, recorded) in enumerate(zip(settings, data, strict=True)):
        play = collect(
            task,
            num_episodes=plan.num_play_episodes,
            seed=seed,
            env=make_env(plan.num_play_episodes),
            purpose="play with the defect",
        )
        found = adapt(setting.bundle, play, replay=recorded, config=AdaptConfig(seed=seed))
        errors.append(list(found.errors))
        objective = task_objective(task, found.bundle)
        tuned.append(replace(setting, bundle=found.bundle, objective=objective))
    after = score("ssr", tuned, num_episodes=plan.num_episodes, make_env=make_env)
    lost = healthy.interval.value - before.interval.value
    return {
        "healthy": healthy.interval.value,
        "damaged": before.interval.value,
        "adapted": after.interval.value,
        "adapted_low": after.interval.low,
        "adapted_high": after.interval.high,
        "recovered": (after.interval.value - before.interval.value) / lost if lost > 0 else None,
        "held_out_errors": errors,
        "num_play_episodes": plan.num_play_episodes,
    }
