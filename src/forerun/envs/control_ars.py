"""Augmented random search: linear policies of growing skill, to collect data with, in minutes of one core."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds
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
    """Actions that are linear in normalised states.

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

    def act(self, states: Float[np.ndarray, "*batch state"]) -> Float[np.ndarray, "*batch action"]:
        """Return the actions, not clamped."""
        return ((states - self.mean) / self.std) @ self.weights.T


def search_linear_policies(
    make: Callable[[], Any], config: ArsConfig, *, start: LinearPolicy | None = None
) -> Iterator[LinearPolicy]:
    """Yield the policy of every step of the search, the first one first.

    Args:
        make: Makes a Gymnasium environment.
        config: Options.
        start: To begin from; ``None``: idleness.

    Reference:
        Mania, Guy, Recht 2018 (arXiv 1803.07055), algorithm 2, version V2-t.
    """
    env = make()
    source = np.random.default_rng(config.seed)
    state_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    weights = np.zeros((action_dim, state_dim)) if start is None else start.weights
    mean, std = (np.zeros(state_dim), np.ones(state_dim)) if start is None else (start.mean, start.std)
    count = 0 if start is None else start.num_seen
    squares = count * std**2
    for _ in range(config.num_iterations):
        directions = source.standard_normal((config.num_directions, action_dim, state_dim))
        returns = np.zeros((config.num_directions, 2))
        seen = []
        for row, direction in enumerate(directions):
            for column, sign in enumerate((1.0, -1.0)):
                tried = (weights + sign * config.noise_std * direction) / std
                found, states = _trial(env, tried, mean, config.num_env_steps, seed=int(source.integers(2**31)))
                returns[row, column] = found - config.survival_reward * len(states)
                seen.append(states)
        yield LinearPolicy(weights=weights, mean=mean, std=std, trial_return=float(returns.mean()), num_seen=count)
        top = np.argsort(-returns.max(axis=1))[: config.num_top]
        spread = returns[top].std()
        change = np.einsum("k,kas->as", returns[top, 0] - returns[top, 1], directions[top])
        weights = weights + config.step_size / (config.num_top * max(spread, 1e-8)) * change
        states = np.concatenate(seen)
        # Running moments over everything seen (Chan's update), so that the policy's units settle.
        total = count + len(states)
        gap = states.mean(axis=0) - mean
        squares = squares + ((states - states.mean(axis=0)) ** 2).sum(axis=0) + gap**2 * count * len(states) / total
        mean, count = mean + gap * len(states) / total, total
        std = np.maximum(np.sqrt(squares / count), 1e-3)
    env.close()


def _trial(
    env: Any, weights: np.ndarray, mean: np.ndarray, num_steps: int, *, seed: int
) -> tuple[float, Float[np.ndarray, "steps state"]]:
    state, _ = env.reset(seed=seed)
    total, seen = 0.0, []
    for _ in range(num_steps):
        seen.append(state)
        state, reward, terminated, truncated, _ = env.step(np.clip(weights @ (state - mean), -1.0, 1.0))
        total += float(reward)
        if terminated or truncated:
            break
    return total, np.array(seen)


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
    weights = torch.from_numpy(np.stack([policy.weights / policy.std for policy in chosen])).float()
    means = torch.from_numpy(np.stack([policy.mean for policy in chosen])).float()
    std = largest_std * torch.rand((num_envs, 1), generator=generator)
    noise = SmoothNoise((num_envs, len(bounds.low)), std=std, memory=0.5, generator=generator)

    def act(states: Float[Tensor, "envs state"], env_step: int, /) -> Float[Tensor, "envs action"]:
        return bounds.clamp(torch.einsum("eas,es->ea", weights, states - means) + noise.next())

    return act
