"""Augmented random search: linear policies of growing skill, to collect data with, in minutes of one core."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


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
        seed: Of directions and episodes.
    """

    num_iterations: int = 60
    num_directions: int = 32
    num_top: int = 4
    step_size: float = 0.02
    noise_std: float = 0.03
    num_env_steps: int = 500
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearPolicy:
    """Actions that are linear in normalised states.

    Attributes:
        weights: Of the normalised state.
        mean: Of the states seen in the search.
        std: Likewise.
        trial_return: Mean return of the step's trials around this policy.
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
                returns[row, column], states = _trial(
                    env, tried, mean, config.num_env_steps, seed=int(source.integers(2**31))
                )
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
