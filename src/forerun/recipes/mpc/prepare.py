"""Data and models of a study's seed, made once and used again."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from forerun.core.errors import ConfigError
from forerun.data.trajectories import Trajectories
from forerun.envs.control_env import BatchEnv, FaultyActuator
from forerun.envs.control_task import ControlTask
from forerun.recipes.mpc.collect import collect
from forerun.recipes.mpc.studies import Study
from forerun.worldmodels.diffusion.bundle import ModelBundle
from forerun.worldmodels.diffusion.config import ScaleName, dmpc_config
from forerun.worldmodels.diffusion.joint import JointDiffusion
from forerun.worldmodels.diffusion.stitching import StateValueConfig
from forerun.worldmodels.diffusion.train import DmpcTrainingConfig, ModelTrainer, Report
from forerun.worldmodels.diffusion.waves import WaveConfig


def trainer_of(
    task: ControlTask,
    data: Trajectories,
    *,
    scale: ScaleName,
    training: DmpcTrainingConfig,
    value: Literal["returns", "stitched"] | None = None,
    history: int = 1,
    directory: Path | None = None,
    report: Report = lambda name, done, total, detail: None,
) -> ModelTrainer:
    """Return what trains the models of a task.

    Args:
        task: Names, bounds, horizon, discount.
        data: To learn from.
        scale: Of the models.
        training: How.
        value: What the state value learns; ``None``: stitched where the task asks for it, else the data's returns.
        history: States that the models see.
        directory: For checkpoints; ``None`` keeps none.
        report: Told of progress.
    """
    state_value = StateValueConfig()
    if value == "stitched" or (value is None and task.stitched is not None):
        # Where places are sharp, those of goals are too.
        shown = WaveConfig(indices=(*task.sharp, *task.goal) if task.sharp else ())
        state_value = StateValueConfig(targets="stitched", expectile=0.9, waves=shown)
    config = dmpc_config(
        scale,
        history=history,
        horizon=task.horizon,
        discount=task.discount,
        waves=WaveConfig(indices=task.sharp),
        state_value=state_value,
    )
    return ModelTrainer(
        data,
        task.bounds,
        config=replace(config, wide_share=min(config.wide_share, task.most_wide)),
        training=training,
        arrival=task.stitched,
        directory=directory,
        report=report,
    )


def damaged(task: ControlTask, defect: str = "") -> Callable[[int], BatchEnv]:
    """Return what makes the task with a defect; :meth:`ControlTask.defect` says which, and what it raises."""
    fault = task.defect(defect)
    return lambda num_envs: FaultyActuator(task.make_env(num_envs), fault, reward=task.reward)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a seed's measurements need.

    Attributes:
        bundle: The models.
        data: What they learned from.
        joint: The joint baseline, where the study compares one.
    """

    bundle: ModelBundle
    data: Trajectories
    joint: JointDiffusion | None


def prepared(plan: Study, task: ControlTask, folder: Path, seed: int, report: Report) -> Prepared:
    """Return data and models of a seed: those of the folder, or new ones.

    Args:
        plan: The study.
        task: Its task.
        folder: Of the study.
        seed: Of data and training.
        report: Told of progress.

    Raises:
        ConfigError: The folder has models of another study.
    """
    data_file, model_folder = folder / f"data-{seed}.npz", folder / f"models-{seed}"
    if data_file.exists():
        data = Trajectories.load(data_file)
    else:
        data = collect(
            task,
            num_episodes=task.num_episodes,
            seed=seed,
            on_step=lambda done, count: report(f"collect, seed {seed}", done, count, ""),
        )
        data.save(data_file)
    identity = {
        "digest": data.digest(),
        "num_train_steps": plan.num_train_steps,
        "batch_size": plan.batch_size,
        "scale": plan.scale,
    }
    trainer = trainer_of(
        task,
        data,
        scale=plan.scale,
        training=DmpcTrainingConfig(num_steps=plan.num_train_steps, batch_size=plan.batch_size, seed=seed),
        directory=folder / f"checkpoints-{seed}",
        report=lambda name, done, total, detail: report(f"train {name}, seed {seed}", done, total, detail),
    )
    if model_folder.exists():
        kept = json.loads((model_folder / "manifest.json").read_text(encoding="utf-8"))["record"]
        if kept != identity:
            raise ConfigError(f"{model_folder}: was made with {kept}, this run has {identity}; name another folder")
        bundle = ModelBundle.load(model_folder)
    else:
        bundle = ModelBundle.trained(trainer, task=task.name, bounds=task.bounds)
        bundle.save(model_folder, record=identity)
    # A finished training is read from its last checkpoint.
    joint = trainer.joint() if "joint" in plan.ways else None
    return Prepared(bundle=bundle, data=data, joint=joint)
