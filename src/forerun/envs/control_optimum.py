"""Known optima: linear-quadratic problems by Riccati, tasks of two numbers by dynamic programming."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearQuadratic:
    r"""Minimise :math:`\sum_t x_t^\top Q x_t + u_t^\top R u_t` under :math:`x_{t+1} = A x_t + B u_t`.

    Attributes:
        transition: A.
        control: B.
        state_cost: Q, symmetric, not negative.
        action_cost: R, symmetric, positive.
    """

    transition: Float[Tensor, "state state"]
    control: Float[Tensor, "state action"]
    state_cost: Float[Tensor, "state state"]
    action_cost: Float[Tensor, "action action"]

    def cost(
        self, states: Float[Tensor, "*batch state"], actions: Float[Tensor, "*batch action"]
    ) -> Float[Tensor, "*batch"]:
        """Return the cost of each step."""
        return (states @ self.state_cost * states).sum(dim=-1) + (actions @ self.action_cost * actions).sum(dim=-1)


def finite_horizon_gains(
    problem: LinearQuadratic, num_steps: int
) -> tuple[Float[Tensor, "steps action state"], Float[Tensor, "steps state state"]]:
    r"""Solve a linear-quadratic problem of some steps by Riccati's recursion, in float64.

    Args:
        problem: The problem; nothing is paid for the last state.
        num_steps: Steps that are paid for.

    Returns:
        The gains: :math:`u_t = -K_t x_t` is optimal. The costs to go: :math:`x_t^\top P_t x_t` is the least cost from
        step t on.

    Reference:
        Bertsekas, "Dynamic Programming and Optimal Control", section 4.1.
    """
    a, b = problem.transition.double(), problem.control.double()
    q, r = problem.state_cost.double(), problem.action_cost.double()
    cost = torch.zeros_like(q)
    gains, costs = [], []
    for _ in range(num_steps):
        gain = torch.linalg.solve(r + b.T @ cost @ b, b.T @ cost @ a)
        cost = q + a.T @ cost @ (a - b @ gain)
        gains.append(gain)
        costs.append(cost)
    return torch.stack(gains[::-1]).float(), torch.stack(costs[::-1]).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class GridOptimum:
    """The best policy of a task of two numbers on a grid, for every step of an episode.

    Attributes:
        axes: Grid of each number, ascending and evenly spaced.
        is_periodic: Whether the first number is an angle whose grid has no end.
        actions: The actions that were tried.
        values: Greatest return from a step and a grid point on; ``values[t]`` is [first, second].
    """

    axes: tuple[Float[Tensor, " first"], Float[Tensor, " second"]]
    is_periodic: bool
    actions: Float[Tensor, " actions"]
    values: Float[Tensor, "steps_and_one first second"]

    def value(self, states: Float[Tensor, "*batch 2"], env_step: int) -> Float[Tensor, "*batch"]:
        """Interpolate the return to go, linearly.

        Args:
            states: Any states; those outside the grid are taken at its edge.
            env_step: Steps already done.
        """
        return _interpolated(self.values[env_step], states, self.axes, is_periodic=self.is_periodic)


def solve_on_grid(
    *,
    axes: tuple[Float[Tensor, " first"], Float[Tensor, " second"]],
    is_periodic: bool,
    actions: Float[Tensor, " actions"],
    num_steps: int,
    transition: Callable[[Tensor, Tensor], Tensor],
    reward: Callable[[Tensor, Tensor], Tensor],
) -> GridOptimum:
    """Solve a task of two numbers by dynamic programming, backwards in time.

    Args:
        axes: Grid of each number, evenly spaced.
        is_periodic: Whether the first number is an angle; its grid then covers one turn without its end.
        actions: Actions to try, each a number.
        num_steps: Steps of an episode.
        transition: (states [..., 2], actions [..., 1]) -> states after.
        reward: (states, actions) -> what a step pays.
    """
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    states = grid[:, :, None].expand(-1, -1, len(actions), -1)
    tried = actions[:, None].expand(*states.shape[:-1], 1)
    after, paid = transition(states, tried), reward(states, tried)
    values = [torch.zeros(grid.shape[:2])]
    for _ in range(num_steps):
        values.append((paid + _interpolated(values[-1], after, axes, is_periodic=is_periodic)).amax(dim=-1))
    return GridOptimum(axes=axes, is_periodic=is_periodic, actions=actions, values=torch.stack(values[::-1]))


def _interpolated(
    table: Float[Tensor, "first second"],
    states: Float[Tensor, "*batch 2"],
    axes: tuple[Tensor, Tensor],
    *,
    is_periodic: bool,
) -> Float[Tensor, "*batch"]:
    lows, shares, highs = [], [], []
    for place, axis in enumerate(axes):
        count = len(axis)
        position = (states[..., place] - axis[0]) / (axis[1] - axis[0])
        if is_periodic and place == 0:
            low = position.floor()
            lows.append(low.long() % count)
            highs.append((low.long() + 1) % count)
        else:
            position = position.clamp(0, count - 1)
            low = position.floor().clamp(max=count - 2)
            lows.append(low.long())
            highs.append(low.long() + 1)
        shares.append(position - low)
    first = table[lows[0], lows[1]] * (1 - shares[1]) + table[lows[0], highs[1]] * shares[1]
    second = table[highs[0], lows[1]] * (1 - shares[1]) + table[highs[0], highs[1]] * shares[1]
    return first * (1 - shares[0]) + second * shares[0]
