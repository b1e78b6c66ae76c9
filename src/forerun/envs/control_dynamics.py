"""A task's own equations as a world model: the upper end of what learned dynamics can be."""

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import ActionBounds, History
from forerun.core.protocols import Dynamics
from forerun.envs.control_env import ActuatorFault, TransitionFunction


class TrueDynamics:
    """Rolls a known transition forward; a :class:`~forerun.core.protocols.Dynamics` without error.

    Args:
        transition: One step, for any leading dimensions.
        bounds: Actions are clamped to this box, as the task does.
    """

    def __init__(self, transition: TransitionFunction, *, bounds: ActionBounds) -> None:
        self.action_dim = len(bounds.low)
        self._transition, self._bounds = transition, bounds

    def rollout(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon action"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon state"]:
        """As :meth:`forerun.core.protocols.Dynamics.rollout`; draws nothing."""
        actions = self._bounds.clamp(actions)
        state = history.present[:, None].expand(-1, actions.shape[1], -1)
        states = []
        for step in range(actions.shape[2]):
            state = self._transition(state, actions[:, :, step])
            states.append(state)
        return torch.stack(states, dim=2)


class FaultyDynamics:
    """A world model told of a damage: it predicts what follows when the actuator makes of an action what it does.

    Args:
        dynamics: Of the healthy world.
        fault: What is wrong.
        bounds: Actions are clamped to this box before the fault has them, as the task does.
    """

    def __init__(self, dynamics: Dynamics, fault: ActuatorFault, *, bounds: ActionBounds) -> None:
        self.action_dim = dynamics.action_dim
        self._dynamics, self._fault, self._bounds = dynamics, fault, bounds

    def rollout(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon action"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon state"]:
        """As :meth:`forerun.core.protocols.Dynamics.rollout`."""
        acting = self._fault.acting(self._bounds.clamp(actions))
        return self._dynamics.rollout(history, acting, generator=generator)
