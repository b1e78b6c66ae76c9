"""MPPI of the package ``pytorch_mppi`` on our one-step dynamics: what our planners are compared with."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import History, Plan
from forerun.core.dependencies import import_optional
from forerun.core.generator import keyed_seed
from forerun.planning.scoring import judged
from forerun.recipes.mpc.contenders import Setting

_NOISE_STD = 0.4
"""Standard deviation of its noise, as a share of half the box: as our MPPI's."""
_TEMPERATURE = 0.01
"""Its temperature, as a share of the spread of the data's returns."""


class PackageMppi:
    """The package behind our interface, one of its planners for each environment.

    It keeps its own plan from step to step, so one object serves one run of episodes. Its cost of a step is minus the
    task's reward, of the end minus the learned value; its temperature is a share of the spread of the data's returns.

    Args:
        setting: Task, models, number of samples.

    Raises:
        MissingDependencyError: The package is not installed.
    """

    def __init__(self, setting: Setting) -> None:
        self._package: Any = import_optional("pytorch_mppi", extra="bench", purpose="the comparison with pytorch_mppi")
        self._setting = setting
        self._planners: list[Any] = []

    @torch.no_grad()
    def plan(
        self,
        history: History,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Plan:
        """As :meth:`forerun.core.protocols.Planner.plan`; its warm start is its own, the last plan moved forward."""
        bundle = self._setting.bundle
        if len(self._planners) != history.num_envs:
            self._planners = [self._made() for _ in range(history.num_envs)]
        # The package draws from torch's global generator; its state is put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(int(generator.initial_seed()), "pytorch_mppi") % 2**31)
            for planner, state in zip(self._planners, history.present, strict=True):
                planner.command(torch.cat([state, state.new_zeros(1)]))
        actions = bundle.bounds.clamp(torch.stack([planner.U for planner in self._planners]))
        states = bundle.one_step.rollout(history, actions[:, None], generator=generator)
        return judged(self._setting.objective, history, states, actions[:, None]).decided(
            num_iterations=1, is_complete=True, num_candidates=self._setting.num_samples
        )

    def _made(self) -> Any:
        """Return a planner of the package; the last number of its state is the reward of the step before."""
        setting, bundle = self._setting, self._setting.bundle
        half = 0.5 * (bundle.bounds.high - bundle.bounds.low)
        end_weight = bundle.config.discount**bundle.config.horizon
        generator = torch.Generator()

        def moved(states: Tensor, actions: Tensor) -> Tensor:
            before = states[:, :-1]
            chosen = bundle.bounds.clamp(actions)
            seen = History.of_present(before, action_dim=chosen.shape[-1])
            after = bundle.one_step.rollout(seen, chosen[:, None, None], generator=generator)[:, 0, 0]
            return torch.cat([after, setting.task.reward(before, chosen, after)[:, None]], dim=-1)

        def cost(states: Tensor, actions: Tensor) -> Tensor:
            return -states[:, -1]

        def end_cost(states: Tensor, actions: Tensor) -> Tensor:
            return -end_weight * bundle.state_value(states[..., -1, :-1])

        return self._package.MPPI(
            moved,
            cost,
            len(bundle.state_names) + 1,
            torch.diag((_NOISE_STD * half) ** 2),
            num_samples=setting.num_samples,
            horizon=bundle.config.horizon,
            terminal_state_cost=end_cost,
            lambda_=max(1e-3, _TEMPERATURE * float(bundle.plan_value.returns.scale)),
            u_min=bundle.bounds.low,
            u_max=bundle.bounds.high,
        )
