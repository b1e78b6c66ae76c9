"""Distil a planner into a policy that answers at once; where the policy is not sure, the planner takes over."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from forerun.core.atomic_files import folder_in_the_making, write_json_file
from forerun.core.control import History
from forerun.core.errors import CheckpointError, ConfigError
from forerun.core.generator import keyed_generator
from forerun.core.protocols import Planner
from forerun.envs.control_task import Policy
from forerun.nn.first_weights import seeded_weights
from forerun.planning.episodes import run_episodes
from forerun.planning.statistics import paired_difference
from forerun.recipes.mpc.collect import episode_seeds
from forerun.recipes.mpc.contenders import Setting, contender
from forerun.recipes.mpc.evaluate import timed_episodes
from forerun.training.loop import LoopConfig, TrainingLoop
from forerun.worldmodels.diffusion.reactive import ReactivePolicy
from forerun.worldmodels.diffusion.train import Report

_FORMAT: Final = "forerun-reactive-1"


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """Options of :func:`distill`.

    Attributes:
        num_rounds: Of DAgger. In the first the planner acts, in the others the policy; the planner labels all.
        num_episodes: Of a round, side by side.
        num_train_steps: Optimiser steps after each round, from fresh weights, on everything labelled so far.
        batch_size: States of a step.
        num_members: Networks of the policy.
        width: Of their hidden layers.
        sure_share: Share of the states of the last round that the policy is to be sure of; the supervisor plans where
            the networks differ more than they did there.
        seed: Of starts, plans, weights and batches.
    """

    num_rounds: int = 4
    num_episodes: int = 16
    num_train_steps: int = 800
    batch_size: int = 256
    num_members: int = 4
    width: int = 128
    sure_share: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.num_rounds, self.num_episodes, self.num_train_steps, self.batch_size, self.width)
        if min(counts) < 1 or self.num_members < 2 or not 0 < self.sure_share < 1:
            raise ConfigError(
                f"num_rounds={self.num_rounds}, num_episodes={self.num_episodes}, num_train_steps="
                f"{self.num_train_steps}, batch_size={self.batch_size}, width={self.width}, num_members="
                f"{self.num_members}, sure_share={self.sure_share}: counts must be at least 1, members at least 2, the "
                "share in (0, 1)"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Distilled:
    """A policy that stands for a planner.

    Attributes:
        policy: Answers.
        largest_doubt: Difference of its networks above which a supervisor plans instead.
        round_returns: Mean return of each round's episodes: the planner's first, then the policy's.
    """

    policy: ReactivePolicy
    largest_doubt: float
    round_returns: tuple[float, ...]

    def save(self, folder: Path, *, record: dict[str, Any]) -> None:
        """Write everything to a new folder.

        Args:
            folder: Must not exist, or be empty.
            record: More to keep, as JSON types.

        Raises:
            CheckpointError: It can't be written.
        """
        manifest = {
            "format": _FORMAT,
            "num_members": self.policy.num_members,
            "width": self.policy.weights[0].shape[-1],
            "largest_doubt": self.largest_doubt,
            "round_returns": self.round_returns,
            "record": record,
        }
        try:
            with folder_in_the_making(folder) as partial:
                tensors = {key: value.contiguous().clone() for key, value in self.policy.state_dict().items()}
                save_file(tensors, partial / "policy.safetensors")
                write_json_file(partial / "manifest.json", manifest)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written ({error}); name a new or empty folder") from error

    @classmethod
    def load(cls, folder: Path, setting: Setting) -> "Distilled":
        """Read what :meth:`save` wrote.

        Args:
            folder: The folder.
            setting: Task and models that it was distilled with.

        Raises:
            CheckpointError: A file is missing, corrupt, or of another kind or task.
        """
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            if manifest.get("format") != _FORMAT:
                raise ValueError(f"its format is {manifest.get('format')!r}, not {_FORMAT!r}")
            policy = ReactivePolicy(
                setting.bundle.proposal.frame, num_members=manifest["num_members"], width=manifest["width"]
            )
            policy.load_state_dict(load_file(folder / "policy.safetensors"))
            returns = tuple(float(value) for value in manifest["round_returns"])
            return cls(policy=policy, largest_doubt=float(manifest["largest_doubt"]), round_returns=returns)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: holds no policy for these models ({error}); make one with `forerun mpc distill`"
            ) from error


class Supervisor:
    """Acts by the policy where it is sure, and by the planner elsewhere.

    Args:
        distilled: The policy.
        planner: Takes over; ``None``: the policy always acts.
        seed: Of the planner's chance.
    """

    def __init__(self, distilled: Distilled, *, planner: Planner | None, seed: int = 0) -> None:
        self._distilled, self._planner, self._seed = distilled, planner, seed
        self.num_acted = self.num_planned = 0
        """Actions given in all, and those that were planned."""

    def act(self, states: Float[Tensor, "envs state"], env_step: int, /) -> Float[Tensor, "envs action"]:
        """Return the actions; as :class:`~forerun.envs.control_task.Policy`."""
        actions, doubt = self._distilled.policy.answer(states)
        self.num_acted += len(states)
        unsure = (doubt > self._distilled.largest_doubt).nonzero()[:, 0]
        if self._planner is not None and len(unsure):
            generator = keyed_generator(self._seed, "supervisor", env_step)
            actions[unsure] = planned_actions(self._planner, states[unsure], actions.shape[-1], generator)
            self.num_planned += len(unsure)
        return actions


def distill(
    setting: Setting,
    *,
    config: DistillConfig | None = None,
    way: str = "ssr",
    report: Report = lambda name, done, total, detail: None,
) -> Distilled:
    """Teach a policy what a planner does in the states that the policy itself comes to.

    Args:
        setting: Task, models, objective.
        config: Options.
        way: The planner's name.
        report: Told of progress.

    Raises:
        ConfigError: The way plans nothing.

    Reference:
        Ross, Gordon, Bagnell 2011 (arXiv 1011.0686), DAgger with beta = 1 in the first round and 0 in the others.
    """
    config = config or DistillConfig()
    task, planner = setting.task, contender(way).controller(setting).planner
    states: list[Tensor] = []
    labels: list[Tensor] = []
    returns: list[float] = []
    policy: ReactivePolicy | None = None
    num_seen = 0
    for number in range(config.num_rounds):
        num_seen = len(states)

        def act(seen: Tensor, env_step: int, /, *, number: int = number, policy: ReactivePolicy | None = policy):
            generator = keyed_generator(config.seed, "label", number, env_step)
            wanted = planned_actions(planner, seen, task.action_dim, generator)
            states.append(seen)
            labels.append(wanted)
            return wanted if policy is None else policy.answer(seen)[0]

        episodes = run_episodes(
            task.make_env(config.num_episodes),
            act,
            task=task,
            seeds=episode_seeds(config.seed, f"distil {number}", config.num_episodes),
            source=f"DAgger, round {number}",
        )
        returns.append(float(episodes.returns.mean()))
        policy = _trained(setting, torch.cat(states), torch.cat(labels), config=config, number=number)
        report("distil", number + 1, config.num_rounds, f"return {returns[-1]:.3f}")
    assert policy is not None
    _, doubt = policy.answer(torch.cat(states[num_seen:]))
    limit = float(doubt.quantile(config.sure_share))
    return Distilled(policy=policy, largest_doubt=limit, round_returns=tuple(returns))


def planned_actions(
    planner: Planner, states: Float[Tensor, "envs state"], action_dim: int, generator: torch.Generator
) -> Float[Tensor, "envs action"]:
    """Return a planner's first actions for states that it sees without their past.

    Args:
        planner: Plans.
        states: The present.
        action_dim: Numbers of an action.
        generator: Of the planner's chance.
    """
    return planner.plan(History.of_present(states, action_dim=action_dim), generator=generator).actions[:, 0]


def _trained(
    setting: Setting,
    states: Float[Tensor, "rows state"],
    actions: Float[Tensor, "rows action"],
    *,
    config: DistillConfig,
    number: int,
) -> ReactivePolicy:
    with seeded_weights(config.seed, "reactive", number):
        policy = ReactivePolicy(setting.bundle.proposal.frame, num_members=config.num_members, width=config.width)

    def loss(step: int) -> Tensor:
        generator = keyed_generator(config.seed, "reactive", number, step)
        rows = torch.randint(len(states), (config.batch_size,), generator=generator)
        return policy.loss(states[rows], actions[rows], generator=generator)

    loop = LoopConfig(
        num_steps=config.num_train_steps,
        learning_rate=2e-3,
        num_warmup=20,
        weight_decay=1e-4,
        clip_norm=5.0,
        average_decay=0.99,
    )
    TrainingLoop(policy, loop, batch_at=lambda step: step, loss=loss).run()
    return policy


def measure_distilled(
    setting: Setting, distilled: Distilled, *, way: str, num_episodes: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Compare planner, policy and supervised policy on the same starts.

    Args:
        setting: Task, models, objective.
        distilled: The policy.
        way: The planner's name.
        num_episodes: Of each.
        seed: Of starts and planning.

    Returns:
        For ``planner``, ``policy`` and ``supervised``: the mean return, how far the planner is ahead start by start,
        CPU milliseconds of a step, and the share of steps that were planned.
    """
    planner = contender(way).controller(setting).planner
    controller = contender(way).controller(replace(setting, control=replace(setting.control, seed=seed)))
    alone, supervised = Supervisor(distilled, planner=None), Supervisor(distilled, planner=planner, seed=seed)
    found: dict[str, dict[str, Any]] = {}
    best: list[Any] = []
    acts: dict[str, Policy] = {"planner": controller.act, "policy": alone.act, "supervised": supervised.act}
    for name, act in acts.items():
        episodes, seconds = timed_episodes(setting.task, act, num_episodes=num_episodes, seed=seed, source=name)
        best = best or [episodes.returns]
        found[name] = {
            "mean_return": float(episodes.returns.mean()),
            "planner_ahead": paired_difference(best, [episodes.returns]).as_json(),
            "cpu_ms": 1e3 * seconds / episodes.num_steps,
            "returns": episodes.returns.tolist(),
        }
    found["planner"]["planned_share"], found["policy"]["planned_share"] = 1.0, 0.0
    found["supervised"]["planned_share"] = supervised.num_planned / max(1, supervised.num_acted)
    return found


def distill_record(config: DistillConfig, way: str) -> dict[str, Any]:
    """Return what a policy's folder keeps of how it was made."""
    return {"way": way} | asdict(config)
