"""Data of a task: a mixture of behaviours, recorded."""

from collections.abc import Callable

from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator, keyed_seed
from forerun.data.trajectories import Trajectories
from forerun.envs.control_env import BatchEnv
from forerun.envs.control_task import ControlTask
from forerun.planning.episodes import run_episodes


def episode_seeds(seed: int, purpose: str, count: int) -> list[int]:
    """Return seeds of episodes that are a function of a seed and a purpose: data and evaluation never share one."""
    return [keyed_seed(seed, "episode", purpose, index) % 2**31 for index in range(count)]


def collect(
    task: ControlTask,
    *,
    num_episodes: int,
    seed: int,
    env: BatchEnv | None = None,
    purpose: str = "data",
    on_step: Callable[[int], None] = lambda env_step: None,
) -> Trajectories:
    """Record the task's behaviours.

    Args:
        task: What to do.
        num_episodes: One behaviour each.
        seed: Of behaviours and episodes.
        env: Another version of the task, such as a damaged one, with that many environments; ``None``: the task's own.
        purpose: Names the chance; another purpose gives independent episodes.
        on_step: Told the number of steps done.

    Raises:
        ConfigError: There is no episode to record.
    """
    if num_episodes < 1:
        raise ConfigError(f"--episodes {num_episodes}: must be at least 1")
    return run_episodes(
        env or task.make_env(num_episodes),
        task.behaviour(num_episodes, keyed_generator(seed, "behaviour", purpose)),
        task=task,
        seeds=episode_seeds(seed, purpose, num_episodes),
        source=f"{task.name}, {purpose}, seed {seed}",
        on_step=on_step,
    )
