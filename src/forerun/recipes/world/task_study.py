"""The study of a task beside our own Two-Room: several seeds of a world model between floors and ceilings, one table.

What is done is kept: a cut study goes on with the first model, policy or row that is missing.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import ConfigError
from forerun.data.pixel_shards import PixelDataset, read_dataset
from forerun.recipes.world.agents import CloningAgent
from forerun.recipes.world.bars import Bar, above_bar, best_row, least_success_bar, r_squared_bar
from forerun.recipes.world.evaluation import Contender, Success, evaluate, held_out_of, mlp_probe_r2, pooled
from forerun.recipes.world.findings import Findings, first_seeds, success_lines, successes_of, training_line
from forerun.recipes.world.goal_tasks import GoalTasks, Protocol, held_out_tasks
from forerun.recipes.world.planners import PlanConfig
from forerun.recipes.world.stable_scoring import score_by_stable_worldmodel
from forerun.worldmodels.cloning import CloningConfig, clone_policy, load_policy
from forerun.worldmodels.collection import CollectConfig, collect
from forerun.worldmodels.jepa.checkpoint import load_model
from forerun.worldmodels.jepa.config import JepaTrainConfig
from forerun.worldmodels.jepa.inverse import InverseConfig, InverseModel
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.train import MODEL_FOLDER, train_world

MODEL: Final = "world model"
CONTROL: Final = "lambda = 0"
CLONE: Final = "cloned policy"
_RANDOM: Final = "random"
_BOUNDS: Final = "bounds"

Report = Callable[[str, int, int, str], None]
"""Told (stage, done, total, detail)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskStudy:
    """What is trained and measured of one task.

    Attributes:
        collect: Which episodes.
        train: How to train; its seed is replaced.
        control_steps: Of a control with lambda = 0, which has collapsed long before.
        clone: How to clone a policy to compare with, its seed replaced; ``None``: there is none.
        ways: How models are planned with, by what names of rows add to the model's; the first way is the control's.
        protocols: Kinds of tasks.
        num_tasks: Of each protocol, for each seed.
        seeds: Of models, each with control, policy and tasks of its own.
        is_scored_elsewhere: Whether the evaluation of stable-worldmodel plays; else ours.
        least_success: Rate that is wanted in each protocol; not wanted where it is left out.
        least_r2: R² that is wanted of known quantities, read off by a small network.
    """

    collect: CollectConfig
    train: JepaTrainConfig
    control_steps: int
    clone: CloningConfig | None = None
    ways: Mapping[str, PlanConfig]
    protocols: tuple[Protocol, ...] = ("near",)
    num_tasks: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)
    is_scored_elsewhere: bool = False
    least_success: Mapping[str, float]
    least_r2: Mapping[str, float]

    def __post_init__(self) -> None:
        """Check what the parts don't.

        Raises:
            ConfigError: There is no way to plan, or no seed.
        """
        if not self.ways or not self.seeds:
            raise ConfigError(f"ways={list(self.ways)}, seeds={list(self.seeds)}: name at least one of each")

    def with_seeds(self, num_seeds: int | None) -> "TaskStudy":
        """Return the study with so many seeds; see :func:`~forerun.recipes.world.findings.first_seeds`."""
        return self if num_seeds is None else replace(self, seeds=first_seeds(num_seeds))

    def names(self) -> dict[str, PlanConfig]:
        """Return how each row of the model is planned, by the row's name."""
        return {f"{MODEL}, {way}" if way else MODEL: config for way, config in self.ways.items()}


def study_task(folder: Path, study: TaskStudy, *, report: Report = lambda stage, done, total, detail: None) -> Findings:
    """Make the study, or go on where it was cut; seeds one after the other, with a report after each.

    Args:
        folder: Gets ``data``, ``runs``, ``rows`` (what was measured), ``report.md``, ``report.json``.
        study: What to do.
        report: Progress.

    Raises:
        CollapseError: A model (not a control) collapsed.
        MissingDependencyError: The worlds are of a package that is not installed.
        TrajectoryError: The folder holds other data.
    """
    collect(folder / "data", study.collect, report=lambda done, total: report("collect", done, total, ""))
    running = _Running(folder, study, read_dataset(folder / "data"), report)
    by_seed: list[list[Success]] = []
    trained: list[dict[str, Any]] = []
    for seed in study.seeds:
        trained.append(running.trained(seed))
        by_seed.append(running.rows(seed))
        findings = _findings(study, by_seed, trained)
        write_json_file(folder / "report.json", findings.numbers)
        page = "\n".join(findings.lines)
        (folder / "report.md").write_text(f"# {study.collect.task}\n\n```\n{page}\n```\n", encoding="utf-8")
    return _findings(study, by_seed, trained)


class _Running:
    """Trains and measures; what is in the folder already is not made again."""

    def __init__(self, folder: Path, study: TaskStudy, dataset: PixelDataset, report: Report) -> None:
        self._folder, self._study, self._dataset, self._report = folder, study, dataset, report

    def trained(self, seed: int) -> dict[str, Any]:
        """Train one seed's model, control and policy; return what each came to."""
        study = self._study
        results = {MODEL: self._train(MODEL, seed), CONTROL: self._train(CONTROL, seed)}
        if study.clone is not None:
            results[CLONE] = self._kept(
                f"clone-{seed}", {"clone": asdict(study.clone)}, lambda: self._cloned(study.clone, seed)
            )
        return {"seed": seed, "runs": results, "network_r2": self._probed(seed)}

    def rows(self, seed: int) -> list[Success]:
        """Return one seed's rows: chance, policy, models and what can be reached."""
        rows: list[Success] = []
        for protocol in self._study.protocols:
            bounds = self._measured(seed, protocol, _BOUNDS, None)
            contenders = {**self._study.names(), CONTROL: next(iter(self._study.ways.values()))}
            rows += bounds[:-1]
            for name, config in contenders.items():
                rows += self._measured(seed, protocol, name, replace(config, seed=seed))
            rows.append(bounds[-1])
        return rows

    def _run_folder(self, name: str, seed: int) -> Path:
        return self._folder / "runs" / f"{_file_name(name)}-{seed}"

    def _train(self, name: str, seed: int) -> dict[str, Any]:
        study = self._study
        config = replace(study.train, seed=seed)
        if name == CONTROL:
            config = replace(config, objective=replace(config.objective, weight=0.0), num_steps=study.control_steps)

        def show(done: int, total: int, detail: str) -> None:
            self._report(f"train {name}, seed {seed}", done, total, detail)

        return train_world(
            self._dataset, self._run_folder(name, seed), config, stops_on_collapse=name != CONTROL, report=show
        )

    def _cloned(self, config: CloningConfig | None, seed: int) -> dict[str, Any]:
        assert config is not None

        def show(done: int, total: int, detail: str) -> None:
            self._report(f"clone, seed {seed}", done, total, detail)

        folder = self._run_folder(CLONE, seed)
        shutil.rmtree(folder, ignore_errors=True)  # a policy of which no result was kept
        return clone_policy(self._dataset, folder, replace(config, seed=seed), report=show)

    def _probed(self, seed: int) -> dict[str, float]:
        model, seen, held_out = self._loaded(MODEL, seed)
        settings = {"train": asdict(self._study.train)}
        return self._kept(f"probe-{seed}", settings, lambda: mlp_probe_r2(model, seen, held_out))

    def _loaded(self, name: str, seed: int) -> tuple[Jepa, Any, Any]:
        """Return a model with the episodes that it learned from and those that it never saw."""
        model, manifest = load_model(self._run_folder(name, seed) / MODEL_FOLDER)
        return model, *held_out_of(self._dataset, manifest)

    def _measured(self, seed: int, protocol: Protocol, name: str, config: PlanConfig | None) -> list[Success]:
        """Return the rows of one name, or those of chance, policy and ceiling."""
        study = self._study
        settings = {
            "plan": None if config is None else asdict(config),
            "train": asdict(study.train),
            "clone": None if study.clone is None else asdict(study.clone),
            "num_tasks": study.num_tasks,
        }

        def measure() -> list[dict[str, Any]]:
            model, seen, held_out = self._loaded(CONTROL if name == CONTROL else MODEL, seed)
            tasks = held_out_tasks(
                held_out, protocol, num_tasks=study.num_tasks, frame_skip=self._dataset.frame_skip, seed=seed,
                task=study.collect.task,
            )  # fmt: skip
            contenders: dict[str, Contender] = {}
            if config is not None:
                contender = Contender(model=model, seen=seen, config=config)
                if config.num_proposals:
                    guesses = InverseConfig(horizon=config.horizon, seed=seed)
                    contender = replace(contender, inverse=InverseModel.of_episodes(model, seen, guesses))
                contenders[name] = contender
            return [row.to_json() for row in self._played(contenders, tasks, seed)]

        return successes_of(self._kept(f"{_file_name(name)}-{protocol}-{seed}", settings, measure))

    def _played(self, contenders: Mapping[str, Contender], tasks: GoalTasks, seed: int) -> list[Success]:
        """Let contenders act, or, without any, those between whom they stand."""
        study, has_bounds = self._study, not contenders
        if study.is_scored_elsewhere:
            self._report(f"seed {seed}, {', '.join(contenders) or _BOUNDS}, by stable-worldmodel", 0, 1, "")
            return score_by_stable_worldmodel(contenders, tasks, seed=seed, has_bounds=has_bounds)
        others = {}
        if has_bounds and study.clone is not None:
            others[CLONE] = CloningAgent(load_policy(self._run_folder(CLONE, seed)), tasks)
        rows, _ = evaluate(
            contenders, tasks, others=others, seed=seed, has_bounds=has_bounds,
            report=lambda done, total, detail: self._report(f"seed {seed}, {detail}", done, total, ""),
        )  # fmt: skip
        return rows

    def _kept(self, name: str, settings: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Return what is kept under a name for the same settings and data, or make and keep it."""
        path = self._folder / "rows" / f"{name}.json"
        wanted = json.loads(json.dumps({**settings, "data_digest": self._dataset.digest}))
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["settings"] == wanted:
                return record["found"]
        found = make()
        path.parent.mkdir(exist_ok=True)
        write_json_file(path, {"settings": wanted, "found": found})
        return found


def _findings(study: TaskStudy, by_seed: Sequence[Sequence[Success]], trained: Sequence[Mapping[str, Any]]) -> Findings:
    rows = pooled(by_seed)
    bars: list[Bar] = []
    for protocol in study.protocols:
        best = best_row(rows, protocol, MODEL)
        if protocol in study.least_success:
            bars.append(least_success_bar(best, study.least_success[protocol]))
        floors = [_RANDOM, CONTROL, *([] if study.clone is None else [CLONE])]
        bars += [above_bar(best, best_row(rows, protocol, floor)) for floor in floors]
    for name, least in study.least_r2.items():
        bars.append(r_squared_bar(f"{name}, small network", [part["network_r2"][name] for part in trained], least))
    lines = ["Bars (success over all tasks, of the best way to plan; R² of the worst seed)"]
    lines += [*(bar.line() for bar in bars), "", *success_lines(by_seed), "", "Health of held-out frames"]
    for part in trained:
        lines += [
            training_line(name, part["seed"], result) for name, result in part["runs"].items() if "health" in result
        ]
        r2 = "  ".join(f"{name} {value:.3f}" for name, value in part["network_r2"].items())
        lines.append(f"{'':<12} R² by a small network: {r2}")
    numbers = {
        "config": asdict(study),
        "bars": [bar.to_json() for bar in bars],
        "success": [row.to_json() for row in rows],
        "by_seed": [
            {**part, "success": [row.to_json() for row in group]} for part, group in zip(trained, by_seed, strict=True)
        ],
    }
    return Findings(lines=lines, numbers=json.loads(json.dumps(numbers)))


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name)
