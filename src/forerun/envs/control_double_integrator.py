"""The double integrator with a quadratic cost: a mass on a line, whose best control Riccati's equation gives."""

from functools import cache
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds
from forerun.envs.control_env import ActuatorFault, ClosedFormEnv
from forerun.envs.control_optimum import LinearQuadratic, finite_horizon_gains
from forerun.envs.control_task import ControlTask, Policy, SmoothNoise

STATE_NAMES: Final = ("position", "velocity")
ACTION_NAMES: Final = ("force",)
NUM_STEPS: Final = 50
BOUNDS: Final = ActionBounds.symmetric(1)
_STEP_S: Final = 0.1
_START_SPREAD: Final = torch.tensor([0.6, 0.25])
"""Starts are uniform in this box: small enough that the unbounded optimum never meets the actuator's limit."""

PROBLEM: Final = LinearQuadratic(
    transition=torch.tensor([[1.0, _STEP_S], [0.0, 1.0]]),
    control=torch.tensor([[0.5 * _STEP_S**2], [_STEP_S]]),
    state_cost=torch.diag(torch.tensor([1.0, 0.1])),
    action_cost=torch.tensor([[1.0]]),
)
"""A unit mass, steps of 0.1 s; the cost of a step is x² + 0.1 v² + u², on the state *before* the action."""


def start(generator: torch.Generator) -> Float[Tensor, "2"]:
    """Draw a first state."""
    return (2 * torch.rand(2, generator=generator) - 1) * _START_SPREAD


def transition(states: Float[Tensor, "*batch 2"], actions: Float[Tensor, "*batch 1"], /) -> Float[Tensor, "*batch 2"]:
    """Return the states one step later, exactly."""
    return states @ PROBLEM.transition.T + actions @ PROBLEM.control.T


def reward(
    before: Float[Tensor, "*batch 2"], actions: Float[Tensor, "*batch 1"], after: Float[Tensor, "*batch 2"], /
) -> Float[Tensor, "*batch"]:
    """Return minus the cost of a step."""
    return -PROBLEM.cost(before, actions)


def make_env(num_envs: int) -> ClosedFormEnv:
    """Return a batch of environments."""
    return ClosedFormEnv(
        num_envs, bounds=BOUNDS, num_steps=NUM_STEPS, start=start, transition=transition, reward=reward
    )


def best_action(states: Float[Tensor, "envs 2"], env_step: int) -> Float[Tensor, "envs 1"]:
    """Return the optimal control of an episode of :data:`NUM_STEPS` steps.

    Args:
        states: The present.
        env_step: Steps already done.
    """
    gains, _ = _solution()
    return -states @ gains[min(env_step, NUM_STEPS - 1)].T


def best_return(states: Float[Tensor, "envs 2"]) -> Float[Tensor, " envs"]:
    """Return the greatest possible return of an episode that begins in a state: minus x' P x."""
    _, costs = _solution()
    return -(states @ costs[0] * states).sum(dim=-1)


@cache
def _solution() -> tuple[Float[Tensor, "steps 1 2"], Float[Tensor, "steps 2 2"]]:
    return finite_horizon_gains(PROBLEM, NUM_STEPS)


def behaviour(num_envs: int, generator: torch.Generator) -> Policy:
    """Return a mixture of linear controllers, each with gains of its own, from idle to hasty, and with noise.

    Args:
        num_envs: Controllers.
        generator: Of gains and noise.
    """
    gains = 2.0 * torch.rand((num_envs, 2), generator=generator)
    std = 0.4 * torch.rand((num_envs, 1), generator=generator)
    noise = SmoothNoise((num_envs, 1), std=std, memory=0.8, generator=generator)

    def act(states: Float[Tensor, "envs 2"], env_step: int, /) -> Float[Tensor, "envs 1"]:
        return BOUNDS.clamp(-(gains * states).sum(dim=-1, keepdim=True) + noise.next())

    return act


def task() -> ControlTask:
    """Return the task."""
    return ControlTask(
        name="double-integrator",
        summary="a mass on a line, quadratic cost; Riccati's equation gives the optimum",
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        bounds=BOUNDS,
        num_steps=NUM_STEPS,
        discount=0.95,
        horizon=16,
        num_episodes=200,
        make_env=make_env,
        behaviour=behaviour,
        reward=reward,
        transition=transition,
        best_policy=best_action,
        defects={
            "weak": ActuatorFault(indices=(0,), gain=0.3),
            "biased": ActuatorFault(indices=(0,), bias=0.3),
        },
    )
