"""Episodes of a policy or a controller in a batch of environments, as trajectories."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from forerun.data.trajectories import Episode, Trajectories
from forerun.envs.control_env import BatchEnv
from forerun.envs.control_task import ControlTask, Policy


def run_episodes(
    env: BatchEnv,
    policy: Policy,
    *,
    task: ControlTask,
    seeds: Sequence[int],
    source: str,
    on_step: Callable[[int], None] = lambda env_step: None,
    on_action: Callable[[], None] = lambda: None,
) -> Trajectories:
    """Run one episode in each environment, to its end or the task's number of steps.

    Args:
        env: The environments; may be a damaged version of the task.
        policy: Acts in all of them.
        task: Names and length.
        seeds: Of the episodes, one for each environment.
        source: What the recording is called.
        on_step: Told the number of steps done.
        on_action: Called when an action has begun to run, before what it leads to is seen.

    Returns:
        The episodes. Actions are those that were asked for, inside their box, whatever a weak actuator made of them.
    """
    states = [env.reset(seeds)]
    actions, rewards, terminated, has_ended = [], [], [], []
    for env_step in range(task.num_steps):
        chosen = task.bounds.clamp(policy(states[-1], env_step))
        on_action()
        transition = env.step(chosen)
        actions.append(chosen)
        rewards.append(transition.rewards)
        terminated.append(transition.terminated)
        has_ended.append(transition.terminated | transition.truncated)
        states.append(transition.states)
        on_step(env_step + 1)
        if bool(has_ended[-1].all()):
            break
    ends = torch.stack(has_ended)
    lengths = torch.where(ends.any(dim=0), ends.int().argmax(dim=0) + 1, len(actions)).tolist()
    state_array, action_array = (torch.stack(parts).numpy() for parts in (states, actions))
    reward_array, terminated_array = (torch.stack(parts).numpy() for parts in (rewards, terminated))
    episodes = [
        Episode(
            states=state_array[: length + 1, index].astype(np.float32),
            actions=action_array[:length, index].astype(np.float32),
            rewards=reward_array[:length, index].astype(np.float32),
            terminated=bool(terminated_array[length - 1, index]),
        )
        for index, length in enumerate(lengths)
    ]
    return Trajectories(
        episodes=tuple(episodes), state_names=task.state_names, action_names=task.action_names, source=source
    )
