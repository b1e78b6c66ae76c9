"""The whole study of one task: data, models and collapsed controls, planning, surprise, a report."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from forerun.core.atomic_files import write_json_file
from forerun.data.pixel_shards import PixelDataset, read_dataset
from forerun.recipes.world.bars import health_bars, success_bars, surprise_bars
from forerun.recipes.world.evaluation import Contender, Success, evaluate, held_out_of, pooled
from forerun.recipes.world.findings import Findings, first_seeds, success_lines, successes_of, training_line
from forerun.recipes.world.goal_tasks import Protocol, held_out_tasks
from forerun.recipes.world.pictures import check_picture_packages, draw_health, draw_surprise, write_plan_gif
from forerun.recipes.world.planners import PlanConfig
from forerun.recipes.world.surprise_benchmark import (
    SurpriseConfig,
    SurpriseEpisodes,
    measure_surprise,
    record_surprise_episodes,
)
from forerun.worldmodels.collection import CollectConfig, collect
from forerun.worldmodels.jepa.checkpoint import load_model
from forerun.worldmodels.jepa.config import TRAIN_CONFIGS, JepaTrainConfig
from forerun.worldmodels.jepa.train import MODEL_FOLDER, RESULT_FILE, train_world

_MODEL, _CONTROL = "world model", "lambda = 0"
_BY_MAP = "by map"
_WAYS: Final[tuple[tuple[Protocol, Literal["latent", "landmarks"]], ...]] = (
    ("near", "latent"),
    ("near", "landmarks"),
    ("opposite", "latent"),
    ("opposite", "landmarks"),
)
"""What is measured: protocols, each with the cost of a state."""
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
        control_steps: Of a control, which has collapsed long before; ``None``: as many as a model.
        seeds: Of the models, each with a control.
        plan: How to plan.
        num_tasks: Of each protocol, for each model.
        surprise: Sizes of that benchmark.
    """

    name: str
    collect: CollectConfig
    train: JepaTrainConfig
    control_steps: int | None
    seeds: tuple[int, ...]
    plan: PlanConfig
    num_tasks: int
    surprise: SurpriseConfig

    def with_seeds(self, num_seeds: int | None) -> "Scale":
        """Return the scale with so many seeds; see :func:`~forerun.recipes.world.findings.first_seeds`."""
        return self if num_seeds is None else replace(self, seeds=first_seeds(num_seeds))


SCALES: Final[Mapping[str, Scale]] = {
    "smoke": Scale(
        name="smoke",
        collect=CollectConfig(num_episodes=300),
        train=TRAIN_CONFIGS["smoke"],
        control_steps=None,
        seeds=(0,),
        plan=PlanConfig(num_samples=64, num_elites=8, num_iterations=6),
        num_tasks=30,
        surprise=SurpriseConfig(num_calibration=300, num_undisturbed=300, num_pairs=100),
    ),
    "cpu": Scale(
        name="cpu",
        collect=CollectConfig(num_episodes=1200),
        train=replace(
            TRAIN_CONFIGS["small"],
            model=replace(TRAIN_CONFIGS["small"].model, latent_dim=64),
            num_steps=1000,
            learning_rate=2e-3,
            objective=replace(TRAIN_CONFIGS["small"].objective, weight=0.08),
        ),
        control_steps=500,
        seeds=(0, 1, 2),
        plan=PlanConfig(num_samples=64, num_elites=8, num_iterations=6),
        num_tasks=100,
        surprise=SurpriseConfig(num_calibration=2000, num_undisturbed=2000, num_pairs=200),
    ),
}


def reproduce(folder: Path, scale: Scale, *, report: Report = lambda stage, done, total, detail: None) -> Findings:
    """Make the study, or go on where it was cut; seeds one after the other, with a report after each.

    Args:
        folder: Gets ``data``, ``runs``, ``seeds`` (what was measured of each), ``plan.gif``, ``surprise.png``,
            ``health.png``, ``report.md``, ``report.json``.
        scale: How large.
        report: Progress.

    Raises:
        MissingDependencyError: matplotlib or Pillow is not installed; found out before any work.
        CollapseError: A model (not a control) collapsed.
        TrajectoryError: The folder holds a study of another scale.
    """
    check_picture_packages()
    collect(folder / "data", scale.collect, report=lambda done, total: report("collect", done, total, ""))
    study = _Study(folder, scale, read_dataset(folder / "data"), report)
    measured: list[Mapping[str, Any]] = []
    for seed in scale.seeds:
        measured.append(study.measured(seed))
        findings = _findings(replace(scale, seeds=scale.seeds[: len(measured)]), measured)
        write_json_file(folder / "report.json", findings.numbers)
        (folder / "report.md").write_text(_page(findings), encoding="utf-8")
    return _findings(scale, measured)


class _Study:
    """Trains and measures; what is in the folder already is not made again."""

    def __init__(self, folder: Path, scale: Scale, dataset: PixelDataset, report: Report) -> None:
        self._folder, self._scale, self._dataset, self._report = folder, scale, dataset, report
        self._surprise_episodes = cache(self._recorded)
        """The same for every model, and recorded when the first one is ready."""

    def measured(self, seed: int) -> Mapping[str, Any]:
        """Return what one seed's model and control did."""
        path = self._folder / "seeds" / f"seed-{seed}.json"
        settings = json.loads(json.dumps(asdict(replace(self._scale, seeds=()))))
        settings |= {"data_digest": self._dataset.digest, "ways": [list(way) for way in _WAYS]}
        if path.is_file() and (kept := _read_json(path))["settings"] == settings:
            return kept
        began_cpu_s = time.process_time()
        runs = {name: self._trained(name, seed) for name in (_MODEL, _CONTROL)}
        rows = self._planned(runs, seed)
        model, _ = load_model(runs[_MODEL] / MODEL_FOLDER)
        self._report(f"surprise, seed {seed}", 0, 1, "")
        surprise = measure_surprise(model, self._surprise_episodes(), self._scale.surprise)
        if seed == self._scale.seeds[0]:
            draw_surprise(self._folder / "surprise.png", surprise)
            draw_health(
                self._folder / "health.png", {name: _read_json(run / "health.json") for name, run in runs.items()}
            )
        found = {
            "settings": settings,
            "seed": seed,
            "training": {name: _read_json(run / RESULT_FILE) for name, run in runs.items()},
            "success": [row.to_json() for row in rows],
            "surprise": surprise.to_json() | {"lines": surprise.lines()},
            "cpu_s": time.process_time() - began_cpu_s,
        }
        path.parent.mkdir(exist_ok=True)
        write_json_file(path, found)
        return _read_json(path)

    def _trained(self, name: str, seed: int) -> Path:
        """Train a model or a control; return its folder."""
        config = replace(self._scale.train, seed=seed)
        if name == _CONTROL:
            config = replace(
                config,
                objective=replace(config.objective, weight=0.0),
                num_steps=self._scale.control_steps or config.num_steps,
            )
        run = self._folder / "runs" / f"{'control' if name == _CONTROL else 'model'}-{seed}"

        def show(done: int, total: int, detail: str) -> None:
            self._report(f"train {name}, seed {seed}", done, total, detail)

        train_world(self._dataset, run, config, stops_on_collapse=name != _CONTROL, report=show)
        return run

    def _planned(self, runs: Mapping[str, Path], seed: int) -> list[Success]:
        """Let model and control act in tasks of this seed's own."""
        loaded = {name: load_model(run / MODEL_FOLDER) for name, run in runs.items()}
        seen, held_out = held_out_of(self._dataset, loaded[_MODEL][1])
        rows: list[Success] = []
        for protocol, goal in _WAYS:
            config = replace(self._scale.plan, goal=goal, seed=seed)
            suffix = ""
            if goal == "landmarks":
                config, suffix = replace(config, execute_horizon=_MAP_EXECUTE_HORIZON), f", {_BY_MAP}"
            tasks = held_out_tasks(
                held_out, protocol, num_tasks=self._scale.num_tasks, frame_skip=self._dataset.frame_skip, seed=seed
            )
            contenders = {
                f"{name}{suffix}": Contender(model=model, seen=seen, config=config)
                for name, (model, _) in loaded.items()
                if goal == "latent" or name == _MODEL  # a map of one point leads nowhere
            }
            found, shown = evaluate(
                contenders, tasks, seed=seed,
                report=lambda done, total, detail: self._report(f"plan, seed {seed}, {detail}", done, total, ""),
            )  # fmt: skip
            names = {row.name for row in found} if goal == "latent" else set(contenders)
            rows.extend(row for row in found if row.name in names)
            if (protocol, goal) == _WAYS[-1] and seed == self._scale.seeds[0]:
                played, agent = shown[f"{_MODEL}{suffix}"]
                write_plan_gif(self._folder / "plan.gif", tasks, played, agent, model=loaded[_MODEL][0], gallery=seen)
        return rows

    def _recorded(self) -> SurpriseEpisodes:
        return record_surprise_episodes(
            self._scale.collect,
            self._scale.surprise,
            report=lambda done, total, detail: self._report("surprise", done, total, detail),
        )


def _findings(scale: Scale, measured: Sequence[Mapping[str, Any]]) -> Findings:
    by_seed = [successes_of(part["success"]) for part in measured]
    rows = pooled(by_seed)
    bars = [
        *health_bars([part["training"][_MODEL]["health"] for part in measured]),
        *success_bars(rows, model=_MODEL, control=_CONTROL),
        *surprise_bars([part["surprise"] for part in measured]),
    ]
    lines = ["Bars (of several seeds the worst; success over all tasks)", *(bar.line() for bar in bars), ""]
    lines += success_lines(by_seed)
    lines += ["", "Health of held-out frames"]
    for part in measured:
        for name, result in part["training"].items():
            lines.append(training_line(name, part["seed"], result))
    for part in measured:
        lines += ["", f"Surprise, seed {part['seed']}", *part["surprise"]["lines"]]
    numbers = {
        "scale": scale.name,
        "config": asdict(scale),
        "bars": [bar.to_json() for bar in bars],
        "success": [row.to_json() for row in rows],
        "by_seed": list(measured),
        "cpu_s": sum(part["cpu_s"] for part in measured),
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
