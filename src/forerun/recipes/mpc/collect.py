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
    make_env: Callable[[int], BatchEnv] | None = None,
    purpose: str = "data",
    on_step: Callable[[int, int], None] = lambda num_done, num_steps: None,
) -> Trajectories:
    """Record the task's behaviours.

    Args:
        task: What to do.
        num_episodes: One behaviour each.
        seed: Of behaviours and episodes.
        make_env: Makes another version of the task, such as a damaged one; ``None``: the task's own.
        purpose: Names the chance; another purpose gives independent episodes.
        on_step: Told the number of steps done, side by side as they are, and of all.

    Raises:
        ConfigError: There is no episode to record.
    """
    if num_episodes < 1:
        raise ConfigError(f"--episodes {num_episodes}: must be at least 1")
    seeds = episode_seeds(seed, purpose, num_episodes)
    generator = keyed_generator(seed, "behaviour", purpose)
    at_once = min(num_episodes, task.most_envs or num_episodes)
    env = (make_env or task.make_env)(at_once)
    num_parts = -(-num_episodes // at_once)
    recorded: Trajectories | None = None
    for part in range(num_parts):
        chosen = seeds[part * at_once : (part + 1) * at_once]
        if len(chosen) < at_once:
            env = (make_env or task.make_env)(len(chosen))
        found = run_episodes(
            env,
            task.behaviour(len(chosen), generator),
            task=task,
            seeds=chosen,
            source=f"{task.name}, {purpose}, seed {seed}",
            on_step=lambda step, part=part: on_step(part * task.num_steps + step, num_parts * task.num_steps),
        )
        recorded = found if recorded is None else recorded.joined(found)
    assert recorded is not None
    return recorded
