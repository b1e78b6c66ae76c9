"""Other ways to a world model on the data of the smoke study: success, price of a plan and size in one table.

SIGReg against no regulariser, variance and covariance (as PLDM), an averaged target, and a predictor over the patch
tokens of a frozen encoder (as many as DINO-WM has). All plan with the same settings for the same held-out tasks in one
process.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from forerun.core.atomic_files import write_json_file
from forerun.core.env import cpu_info, package_versions
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.data.pixel_shards import read_dataset
from forerun.recipes.world.evaluation import Contender, Success, evaluate, held_out_of
from forerun.recipes.world.goal_tasks import GoalTasks, held_out_tasks
from forerun.recipes.world.planners import PlanConfig
from forerun.recipes.world.reproduce import SCALES
from forerun.worldmodels.collection import CollectConfig, collect
from forerun.worldmodels.jepa.checkpoint import load_model
from forerun.worldmodels.jepa.config import JepaTrainConfig, RegularizerName
from forerun.worldmodels.jepa.train import MODEL_FOLDER, train_world
from forerun.worldmodels.token_world import NUM_PATCHES, TokenWorldConfig, train_token_world

_TOKENS: Final = f"frozen features, {NUM_PATCHES} tokens"
_WAYS: Final[Mapping[str, tuple[RegularizerName, float | None]]] = {
    "SIGReg": ("sigreg", None),
    "no regulariser": ("sigreg", 0.0),
    "variance and covariance": ("vicreg", 1.0),
    "averaged target": ("ema", 0.0),
}
"""Regulariser and its weight; ``None`` is that of the configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonConfig:
    """Sizes.

    Attributes:
        collect: Episodes of Two-Room.
        train: Of the JEPAs; regulariser and weight are replaced.
        tokens: Of the model over tokens.
        plan: How everybody plans.
        num_tasks: Of the protocol ``near``.
        num_token_tasks: The first so many of them are what the model over tokens gets: its plans are dear.
    """

    collect: CollectConfig = field(default_factory=lambda: SCALES["smoke"].collect)
    train: JepaTrainConfig = field(default_factory=lambda: SCALES["smoke"].train)
    tokens: TokenWorldConfig = field(default_factory=TokenWorldConfig)
    plan: PlanConfig = field(default_factory=lambda: SCALES["smoke"].plan)
    num_tasks: int = 100
    num_token_tasks: int = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way.

    Attributes:
        success: At the tasks.
        num_params: Weights, frozen ones included.
        num_trained: Weights that were learned.
        numbers_per_frame: Of an embedding.
        train_cpu_s: CPU seconds of training.
        mean_probe_r2: Of position, by a linear probe; ``None`` where it was not measured.
    """

    success: Success
    num_params: int
    num_trained: int
    numbers_per_frame: int
    train_cpu_s: float
    mean_probe_r2: float | None

    def line(self) -> str:
        """Return it on one line."""
        probe = "" if self.mean_probe_r2 is None else f"   probe R² {self.mean_probe_r2:.3f}"
        return f"{self.success.line()}   {self.num_trained:,} weights learned{probe}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        own = ("num_params", "num_trained", "numbers_per_frame", "train_cpu_s", "mean_probe_r2")
        return self.success.to_json() | {name: getattr(self, name) for name in own}


def compare(
    folder: Path,
    config: ComparisonConfig,
    *,
    report: Callable[[str, int, int, str], None] = lambda stage, done, total, detail: None,
) -> list[Row]:
    """Train every way, plan with every way, write ``comparison.json``; runs that are done are kept.

    Args:
        folder: Gets ``data``, ``runs`` and the result; may be that of a smoke study, whose data it then takes.
        config: Sizes.
        report: Told (stage, done, total, detail).

    Returns:
        Chance and the expert first and last; then a row for each way.
    """
    collect(folder / "data", config.collect, report=lambda done, total: report("collect", done, total, ""))
    dataset = read_dataset(folder / "data")
    runs = {name: folder / "runs" / f"compared-{name.replace(' ', '-')}" for name in _WAYS}
    results: dict[str, dict[str, Any]] = {}
    for name, (regularizer, weight) in _WAYS.items():
        objective = replace(config.train.objective, regularizer=regularizer)
        if weight is not None:
            objective = replace(objective, weight=weight)

        def show(done: int, total: int, detail: str, stage: str = f"train: {name}") -> None:
            report(stage, done, total, detail)

        training = replace(config.train, objective=objective)
        results[name] = train_world(dataset, runs[name], training, stops_on_collapse=False, report=show)
    loaded = {name: load_model(run / MODEL_FOLDER) for name, run in runs.items()}
    seen, held_out = held_out_of(dataset, loaded["SIGReg"][1])
    tasks = held_out_tasks(held_out, "near", num_tasks=config.num_tasks, frame_skip=dataset.frame_skip, seed=0)
    contenders = {name: Contender(model=model, seen=seen, config=config.plan) for name, (model, _) in loaded.items()}
    found, _ = evaluate(
        contenders, tasks, report=lambda done, total, detail: report(f"plan: {detail}", done, total, "")
    )
    rows = [
        Row(
            success=success,
            num_params=results[success.name]["num_params"],
            num_trained=results[success.name]["num_params"],
            numbers_per_frame=config.train.model.latent_dim,
            train_cpu_s=results[success.name]["cpu_s_since_start"],
            mean_probe_r2=results[success.name]["health"]["mean_probe_r2"],
        )
        for success in found
        if success.name in contenders
    ]
    few = _first(tasks, config.num_token_tasks)
    rows += _over_tokens(seen, few, config, contenders["SIGReg"], report)
    others = [success for success in found if success.name not in contenders]
    write_json_file(folder / "comparison.json", _record(rows, others, config))
    return rows


def _over_tokens(
    seen: PixelEpisodes,
    tasks: GoalTasks,
    config: ComparisonConfig,
    ours: Contender,
    report: Callable[[str, int, int, str], None],
) -> list[Row]:
    """Train the model over tokens, and let it and ours plan for the same few tasks, one after the other."""
    report("train: tokens", 0, 0, "")
    began = time.process_time()
    world = train_token_world(seen, config.tokens)
    train_cpu_s = time.process_time() - began
    contenders = {f"SIGReg, {tasks.num_tasks} tasks": ours, _TOKENS: replace(ours, model=world)}
    found, _ = evaluate(
        contenders, tasks, report=lambda done, total, detail: report(f"plan: {detail}", done, total, "")
    )
    weights = [parameter.numel() for parameter in world.parameters()]
    trained = [parameter.numel() for parameter in world.parameters() if parameter.requires_grad]
    jepa_weights = sum(tensor.numel() for tensor in _parameters(ours))
    rows = {success.name: success for success in found}
    name = f"SIGReg, {tasks.num_tasks} tasks"
    return [
        Row(
            success=rows[name], num_params=jepa_weights, num_trained=jepa_weights,
            numbers_per_frame=config.train.model.latent_dim, train_cpu_s=0.0, mean_probe_r2=None,
        ),
        Row(
            success=rows[_TOKENS], num_params=sum(weights), num_trained=sum(trained),
            numbers_per_frame=NUM_PATCHES * config.tokens.width, train_cpu_s=train_cpu_s, mean_probe_r2=None,
        ),
    ]  # fmt: skip


def _parameters(contender: Contender) -> list[torch.Tensor]:
    assert isinstance(contender.model, torch.nn.Module)
    return list(contender.model.parameters())


def _first(tasks: GoalTasks, count: int) -> GoalTasks:
    return replace(
        tasks,
        contexts=tasks.contexts[:count],
        starts=tasks.starts[:count],
        goals=tasks.goals[:count],
        recorded=tasks.recorded[:count],
    )


def _record(rows: list[Row], others: list[Success], config: ComparisonConfig) -> dict[str, Any]:
    ours, tokens = rows[-2:]
    return {
        "config": asdict(config),
        "rows": [row.to_json() for row in rows],
        "floor_and_ceiling": [success.to_json() for success in others],
        "plan_cpu_s_of_tokens_over_ours": (tokens.success.cpu_s_per_plan or 0.0) / (ours.success.cpu_s_per_plan or 1.0),
        "cpu": cpu_info().model_name,
        "versions": package_versions(("forerun", "torch")),
    }
