"""Augmented random search: linear policies of growing skill, to collect data with, in minutes of one core."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.envs.control_env import BatchEnv
from forerun.envs.control_task import Policy, SmoothNoise


@dataclass(frozen=True, kw_only=True, slots=True)
class ArsConfig:
    """Options of :func:`search_linear_policies`.

    Attributes:
        num_iterations: Steps of the search.
        num_directions: Directions tried in a step, each both ways.
        num_top: Best directions that count.
        step_size: Of the policy's weights.
        noise_std: Of the directions.
        num_env_steps: Length of a trial.
        survival_reward: Share of every step's reward that is paid for not having fallen; the search does not count it,
            or standing still would be the first thing that it finds.
        seed: Of directions and episodes.
    """

    num_iterations: int = 60
    num_directions: int = 32
    num_top: int = 4
    step_size: float = 0.02
    noise_std: float = 0.03
    num_env_steps: int = 500
    survival_reward: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearPolicy:
    """Actions that are linear in normalised states, not clamped.

    Attributes:
        weights: Of the normalised state.
        mean: Of the states seen in the search.
        std: Likewise.
        trial_return: Mean return of the step's trials around this policy, as the search counts.
        num_seen: States that mean and std are of.
    """

    weights: Float[np.ndarray, "action state"]
    mean: Float[np.ndarray, " state"]
    std: Float[np.ndarray, " state"]
    trial_return: float
    num_seen: int


def search_linear_policies(
    env: BatchEnv, config: ArsConfig, *, start: LinearPolicy | None = None
) -> Iterator[LinearPolicy]:
    """Yield the policy of every step of the search, the first one first.

    Args:
        env: The task, in a batch of twice as many environments as a step has directions: all trials run side by side.
        config: Options.
        start: To begin from; ``None``: idleness.

    Raises:
        ConfigError: The batch has another size.

    Reference:
        Mania, Guy, Recht 2018 (arXiv 1803.07055), algorithm 2, version V2-t.
    """
    num_trials = 2 * config.num_directions
    source = np.random.default_rng(config.seed)
    state_dim, action_dim = env.reset(range(num_trials)).shape[1], len(env.bounds.low)
    weights = np.zeros((action_dim, state_dim)) if start is None else start.weights
    mean, std = (np.zeros(state_dim), np.ones(state_dim)) if start is None else (start.mean, start.std)
    count = 0 if start is None else start.num_seen
    squares = count * std**2
    for _ in range(config.num_iterations):
        directions = source.standard_normal((config.num_directions, action_dim, state_dim))
        signed = np.stack([directions, -directions], axis=1).reshape(num_trials, action_dim, state_dim)
        present = LinearPolicy(weights=weights, mean=mean, std=std, trial_return=0.0, num_seen=count)
        tried = [replace(present, weights=weights + config.noise_std * way) for way in signed]
        found, states = _trials(env, tried, config, source.integers(2**31, size=num_trials).tolist())
        returns = found.reshape(config.num_directions, 2)
        yield replace(present, trial_return=float(returns.mean()))
        top = np.argsort(-returns.max(axis=1))[: config.num_top]
        spread = returns[top].std()
        change = np.einsum("k,kas->as", returns[top, 0] - returns[top, 1], directions[top])
        weights = weights + config.step_size / (config.num_top * max(spread, 1e-8)) * change
        # Running moments over everything seen (Chan's update), so that the policy's units settle.
        total = count + len(states)
        gap = states.mean(axis=0) - mean
        squares = squares + ((states - states.mean(axis=0)) ** 2).sum(axis=0) + gap**2 * count * len(states) / total
        mean, count = mean + gap * len(states) / total, total
        std = np.maximum(np.sqrt(squares / count), 1e-3)


def _trials(
    env: BatchEnv, policies: Sequence[LinearPolicy], config: ArsConfig, seeds: Sequence[int]
) -> tuple[Float[np.ndarray, " trials"], Float[np.ndarray, "seen state"]]:
    """Return what each policy got in an episode of its own, and all states that they saw."""
    act, states = _side_by_side(policies), env.reset(seeds)
    is_running, totals, seen = torch.ones(env.num_envs, dtype=torch.bool), torch.zeros(env.num_envs), []
    for _ in range(config.num_env_steps):
        seen.append(states[is_running].double().numpy())
        made = env.step(act(states))
        totals += is_running * (made.rewards - config.survival_reward)
        is_running, states = is_running & ~(made.terminated | made.truncated), made.states
        if not bool(is_running.any()):
            break
    return totals.double().numpy(), np.concatenate(seen)


def _side_by_side(
    policies: Sequence[LinearPolicy],
) -> Callable[[Float[Tensor, "envs state"]], Float[Tensor, "envs action"]]:
    """Return what policies do, one in each environment; actions are not clamped."""
    weights = torch.from_numpy(np.stack([policy.weights / policy.std for policy in policies])).float()
    means = torch.from_numpy(np.stack([policy.mean for policy in policies])).float()
    return lambda states: torch.einsum("eas,es->ea", weights, states - means)


@cache
def load_policies(file: str) -> tuple[LinearPolicy, ...]:
    """Return the policies of a search that are kept in the package, in the order of the search.

    Args:
        file: Name in ``forerun.envs``.
    """
    text = files("forerun.envs").joinpath(file).read_text(encoding="utf-8")
    return tuple(
        LinearPolicy(
            weights=np.array(record["weights"]),
            mean=np.array(record["mean"]),
            std=np.array(record["std"]),
            trial_return=record["trial_return"],
            num_seen=record["num_seen"],
        )
        for record in json.loads(text)["policies"]
    )


def noisy_mixture(
    known: Sequence[LinearPolicy],
    bounds: ActionBounds,
    num_envs: int,
    *,
    generator: torch.Generator,
    largest_std: float = 0.3,
) -> Policy:
    """Return policies drawn evenly from a search, each with noise of its own.

    Args:
        known: The search.
        bounds: Actions are clamped to this box.
        num_envs: Policies, one for each environment.
        generator: Of the choice and the noise.
        largest_std: Of the noise; each policy's is uniform below it.
    """
    chosen = [known[int(index)] for index in torch.randint(len(known), (num_envs,), generator=generator)]
    linear = _side_by_side(chosen)
    std = largest_std * torch.rand((num_envs, 1), generator=generator)
    noise = SmoothNoise((num_envs, len(bounds.low)), std=std, memory=0.5, generator=generator)

    def act(states: Float[Tensor, "envs state"], env_step: int, /) -> Float[Tensor, "envs action"]:
        return bounds.clamp(linear(states) + noise.next())

    return act
