"""The whole study of one task: data, models and collapsed controls, planning, surprise, a report."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import ConfigError
from forerun.data.pixel_shards import read_dataset
from forerun.recipes.world.agents import PlanConfig
from forerun.recipes.world.evaluation import Success, evaluate, held_out_of
from forerun.recipes.world.goal_tasks import PROTOCOLS
from forerun.recipes.world.pictures import check_picture_packages, draw_health, draw_surprise, write_plan_gif
from forerun.recipes.world.surprise_benchmark import SurpriseConfig, SurpriseResult, measure_surprise
from forerun.worldmodels.collection import CollectConfig, collect
from forerun.worldmodels.jepa.checkpoint import load_model
from forerun.worldmodels.jepa.config import TRAIN_CONFIGS, JepaTrainConfig
from forerun.worldmodels.jepa.train import MODEL_FOLDER, train_world

_MODEL, _CONTROL = "world model", "lambda = 0"
_BY_MAP = "by map"
_MAP_EXECUTE_HORIZON: Final = 3

Report = Callable[[str, int, int, str], None]
"""Told (stage, done, total, detail)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How large a study is.

    Attributes:
        name: Of the scale.
        collect: Which episodes.
        train: How to train; its seed is replaced.
        seeds: Of the models, each with a control.
        plan: How to plan.
        num_tasks: Of each protocol, for each model.
        surprise: Sizes of that benchmark.
    """

    name: str
    collect: CollectConfig
    train: JepaTrainConfig
    seeds: tuple[int, ...]
    plan: PlanConfig
    num_tasks: int
    surprise: SurpriseConfig

    def with_seeds(self, num_seeds: int | None) -> "Scale":
        """Return the scale with so many seeds, from 0 on; with its own for ``None``.

        Raises:
            ConfigError: There would be none.
        """
        if num_seeds is None:
            return self
        if num_seeds < 1:
            raise ConfigError(f"num_seeds={num_seeds}: must be >= 1")
        return replace(self, seeds=tuple(range(num_seeds)))


SCALES: Final[Mapping[str, Scale]] = {
    "smoke": Scale(
        name="smoke",
        collect=CollectConfig(num_episodes=300),
        train=TRAIN_CONFIGS["smoke"],
        seeds=(0,),
        plan=PlanConfig(num_samples=64, num_elites=8, num_iterations=6),
        num_tasks=30,
        surprise=SurpriseConfig(num_calibration=100, num_pairs=100),
    ),
    "cpu": Scale(
        name="cpu",
        collect=CollectConfig(num_episodes=1200),
        train=TRAIN_CONFIGS["small"],
        seeds=(0, 1, 2),
        plan=PlanConfig(num_samples=200, num_elites=20, num_iterations=10),
        num_tasks=100,
        surprise=SurpriseConfig(num_calibration=400, num_pairs=200),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What a study found.

    Attributes:
        lines: For people.
        numbers: All of them, as JSON types.
    """

    lines: list[str]
    numbers: dict[str, Any]


def reproduce(folder: Path, scale: Scale, *, report: Report = lambda stage, done, total, detail: None) -> Findings:
    """Make the study, or go on where it was cut.

    Args:
        folder: Gets ``data``, ``runs``, ``plan.gif``, ``surprise.png``, ``health.png``, ``report.md``, ``report.json``.
        scale: How large.
        report: Progress.

    Raises:
        MissingDependencyError: matplotlib or Pillow is not installed; found out before any work.
        CollapseError: A model (not a control) collapsed.
        TrajectoryError: The folder holds a study of another scale.
    """
    check_picture_packages()
    began_cpu_s = time.process_time()
    collect(folder / "data", scale.collect, report=lambda done, total: report("collect", done, total, ""))
    dataset = read_dataset(folder / "data")
    runs = _train_all(folder, scale, report)
    loaded = {name: [load_model(run / MODEL_FOLDER) for run in folders] for name, folders in runs.items()}
    seen, held_out = held_out_of(dataset, loaded[_MODEL][0][1])
    models = {name: [(model, seen) for model, _ in group] for name, group in loaded.items()}
    rows: list[Success] = []
    for protocol in PROTOCOLS:
        for goal in ("latent", "landmarks"):
            config = replace(scale.plan, goal=goal)
            if goal == "landmarks":
                config = replace(config, execute_horizon=_MAP_EXECUTE_HORIZON)
            found, shown = evaluate(
                models, held_out, protocol, config, num_tasks=scale.num_tasks,
                frame_skip=dataset.frame_skip,
                report=lambda done, total, detail: report(f"plan {detail}", done, total, ""),
            )  # fmt: skip
            if goal == "landmarks":
                found = [replace(row, name=f"{row.name}, {_BY_MAP}") for row in found if row.name in models]
            rows.extend(found)
            if protocol == "opposite" and goal == "landmarks":
                write_plan_gif(folder / "plan.gif", *shown[_MODEL], model=loaded[_MODEL][0][0], gallery=seen)
    surprises = [
        measure_surprise(
            model, scale.collect, scale.surprise,
            report=lambda done, total, detail: report("surprise", done, total, detail),
        )
        for model, _ in loaded[_MODEL]
    ]  # fmt: skip
    draw_surprise(folder / "surprise.png", surprises[0])
    draw_health(folder / "health.png", {name: _read_json(folders[0] / "health.json") for name, folders in runs.items()})
    findings = _findings(scale, runs, rows, surprises, cpu_s=time.process_time() - began_cpu_s)
    write_json_file(folder / "report.json", findings.numbers)
    (folder / "report.md").write_text(_page(findings), encoding="utf-8")
    return findings


def _train_all(folder: Path, scale: Scale, report: Report) -> dict[str, list[Path]]:
    """Train every model and every control; return their folders."""
    dataset = read_dataset(folder / "data")
    runs: dict[str, list[Path]] = {_MODEL: [], _CONTROL: []}
    for seed in scale.seeds:
        for name in runs:
            config = replace(scale.train, seed=seed)
            if name == _CONTROL:
                config = replace(config, objective=replace(config.objective, weight=0.0))
            run = folder / "runs" / f"{'control' if name == _CONTROL else 'model'}-{seed}"
            stage = f"train {name}, seed {seed}"

            def show(done: int, total: int, detail: str, stage: str = stage) -> None:
                report(stage, done, total, detail)

            train_world(dataset, run, config, stops_on_collapse=name != _CONTROL, report=show)
            runs[name].append(run)
    return runs


def _findings(
    scale: Scale,
    runs: Mapping[str, list[Path]],
    rows: list[Success],
    surprises: list[SurpriseResult],
    *,
    cpu_s: float,
) -> Findings:
    results = {name: [_read_json(folder / "result.json") for folder in folders] for name, folders in runs.items()}
    lines = [
        "Success at held-out tasks (95% intervals)",
        *(row.line() for row in rows),
        "",
        "Health of held-out frames",
    ]
    for name, group in results.items():
        for seed, result in zip(scale.seeds, group, strict=True):
            health = result["health"]
            lines.append(
                f"{name:<12} seed {seed}  std {health['embedding_std']:.3f}  rank {health['effective_rank']:.1f}  "
                f"probe R² {health['mean_probe_r2']:.3f}  {result['cpu_s_since_start']:.0f} CPU-s"
                + (f"  collapsed: {result['why_collapsed']}" if result["why_collapsed"] else "")
            )
    for seed, surprise in zip(scale.seeds, surprises, strict=True):
        lines += ["", f"Surprise, seed {seed}", *surprise.lines()]
    numbers = {
        "scale": scale.name,
        "config": asdict(scale),
        "success": [row.to_json() for row in rows],
        "training": results,
        "surprise": [surprise.to_json() for surprise in surprises],
        "cpu_s": cpu_s,
    }
    return Findings(lines=lines, numbers=json.loads(json.dumps(numbers)))


def _page(findings: Findings) -> str:
    table = "\n".join(findings.lines)
    return (
        f"# Two-Room, scale {findings.numbers['scale']}\n\n```\n{table}\n```\n\n"
        "A plan by map: what was seen, what had been imagined (nearest training frame), what was wanted.\n\n"
        "![plan](plan.gif)\n\nSurprise over time, and the frame that caused it.\n\n![surprise](surprise.png)\n\n"
        "Health over training, on held-out frames.\n\n![health](health.png)\n"
    )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
