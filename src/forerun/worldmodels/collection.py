"""Collecting episodes of a task: shards that are functions of a seed and their number, so that a cut run goes on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import ConfigError, TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.data.pixel_shards import read_shard, shard_path, write_manifest, write_shard
from forerun.envs.pixel_tasks import PIXEL_TASKS, pixel_task
from forerun.envs.pixel_world import PixelTask, PolicyName, check_factors

TASK: Final = "two-room"
_RECIPE_FILE: Final = "recipe.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    """What to record.

    Attributes:
        task: Name of the task, of :data:`~forerun.envs.pixel_tasks.PIXEL_TASKS`.
        num_episodes: In all.
        env_steps: Raw actions of an episode; a multiple of ``frame_skip``.
        frame_skip: Raw actions between two frames.
        resolution: Pixels of a side.
        expert_share: Share of episodes of the expert.
        random_share: Share of episodes of the random policy; the rest is the expert with noise.
        factors: What differs between episodes, of those that the task has.
        shard_episodes: Episodes in a file.
        seed: Root of all chance.
    """

    task: str = TASK
    num_episodes: int = 1000
    env_steps: int = 100
    frame_skip: int = 5
    resolution: int = 32
    expert_share: float = 0.2
    random_share: float = 0.3
    factors: tuple[str, ...] = ()
    shard_episodes: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: An option is out of range.
        """
        for name in ("num_episodes", "frame_skip", "shard_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be >= 1")
        if self.env_steps < self.frame_skip or self.env_steps % self.frame_skip:
            raise ConfigError(f"env_steps={self.env_steps}: must be a multiple of frame_skip={self.frame_skip}")
        if self.resolution < 8:
            raise ConfigError(f"resolution={self.resolution}: must be >= 8 pixels; the disc would vanish")
        shares = (self.expert_share, self.random_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(f"shares {shares} of expert and random episodes: must be >= 0 and sum to at most 1")
        check_factors(pixel_task(self.task), frozenset(self.factors))


def collect(
    folder: Path, config: CollectConfig, *, report: Callable[[int, int], None] = lambda done, total: None
) -> Mapping[str, Any]:
    """Record episodes, or those that a cut run left to do.

    Args:
        folder: For the shards; made if it is missing. What it holds of the same recipe is kept.
        config: What to record.
        report: Told (episodes done, episodes in all).

    Returns:
        ``num_episodes``, ``num_frames`` and ``num_kept``, the episodes that were there already.

    Raises:
        TrajectoryError: The folder holds another collection, a damaged shard, or can't be written.
    """
    recipe = asdict(config) | {"factors": sorted(config.factors)}
    _claim(folder, recipe)
    digests: list[str] = []
    num_done = num_kept = num_frames = 0
    for index, first in enumerate(range(0, config.num_episodes, config.shard_episodes)):
        count = min(config.shard_episodes, config.num_episodes - first)
        if shard_path(folder, index).is_file():
            num_kept += count
        else:
            write_shard(folder, index, record_episodes(config, range(first, first + count)))
        episodes, digest = read_shard(folder, index)
        digests.append(digest)
        num_frames += len(episodes.pixels)
        num_done += count
        report(num_done, config.num_episodes)
    write_manifest(folder, digests, task=config.task, frame_skip=config.frame_skip, recipe=recipe)
    return {"num_episodes": num_done, "num_frames": num_frames, "num_kept": num_kept}


def record_episodes(
    config: CollectConfig,
    numbers: range,
    *,
    before_frame: Callable[[Any, int], None] = lambda world, frame: None,
) -> PixelEpisodes:
    """Record some episodes; each is a function of the seed and its number.

    Args:
        config: What to record.
        numbers: Which episodes.
        before_frame: Called with the worlds (as :meth:`~forerun.envs.pixel_world.PixelTask.worlds` made them) and the
            number of the frame that is about to be looked at; may change the worlds, and with them what follows.
    """
    task, factors = pixel_task(config.task), frozenset(config.factors)
    starts = [
        task.begin(_policy(config, number), factors, np.random.default_rng((config.seed, number))) for number in numbers
    ]
    contexts = np.stack([start.context for start in starts])
    world = task.worlds(contexts, np.stack([start.state for start in starts]))
    num_blocks = config.env_steps // config.frame_skip
    before_frame(world, 0)
    frames, states = [world.render(config.resolution)], [world.states]
    blocks: list[np.ndarray] = []
    for frame in range(1, num_blocks + 1):
        block: list[np.ndarray] = []
        for _ in range(config.frame_skip):
            actions = np.stack([start.act(state) for start, state in zip(starts, world.states, strict=True)])
            world.step(actions)
            block.append(actions)
        blocks.append(np.concatenate(block, axis=1))
        before_frame(world, frame)
        frames.append(world.render(config.resolution))
        states.append(world.states)
    blocks.append(np.full((len(starts), config.frame_skip * task.action_dim), np.nan))
    return PixelEpisodes(
        pixels=np.concatenate(np.stack(frames, axis=1)),
        actions=np.concatenate(np.stack(blocks, axis=1)).astype(np.float32),
        states=np.concatenate(np.stack(states, axis=1)).astype(np.float32),
        lengths=np.full(len(starts), num_blocks + 1, np.int64),
        context=contexts,
        state_names=task.state_names,
        context_names=task.context_names,
        source=task.name,
    )


def task_of(recipe: Mapping[str, Any]) -> PixelTask:
    """Return the task that data are of.

    Raises:
        TrajectoryError: Their world is not at hand, as that of imported data.
    """
    name = str(recipe.get("task", ""))
    if name not in PIXEL_TASKS:
        raise TrajectoryError(
            f"data of task {name!r}: only the worlds of {', '.join(PIXEL_TASKS)} are at hand to act in; name a folder "
            "of 'forerun world collect'"
        )
    return PIXEL_TASKS[name]


def recorded_with(recipe: Mapping[str, Any]) -> CollectConfig:
    """Return the options that a dataset's recipe names.

    Raises:
        TrajectoryError: The data were not collected here.
    """
    task_of(recipe)
    options: dict[str, Any] = {**recipe, "factors": tuple(recipe["factors"])}
    return CollectConfig(**options)


def _policy(config: CollectConfig, number: int) -> PolicyName:
    """Return whose episode this is: shares are exact over the episodes, and neighbours differ."""
    place = (number * 0.6180339887498949) % 1.0
    if place < config.expert_share:
        return "expert"
    return "random" if place < config.expert_share + config.random_share else "noisy"


def _claim(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Mark a folder as this recipe's, or find that it is another's."""
    path = folder / _RECIPE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(recipe)):
                raise TrajectoryError(
                    f"{folder}: holds a collection with other options (see {path.name}); name another folder"
                )
            return
        write_json_file(path, dict(recipe))
    except OSError as error:
        raise TrajectoryError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
