"""Scored by others: our world models in the evaluation of ``stable-worldmodel``, with its worlds and planner."""

import contextlib
import io
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.envs.push_t import published_state
from forerun.envs.stable_worlds import import_stable_worldmodel
from forerun.planning.objective import GoalDistance
from forerun.recipes.world.evaluation import Success
from forerun.recipes.world.goal_tasks import GOAL_OFFSET_STEPS, GoalTasks
from forerun.recipes.world.planners import PlanConfig
from forerun.worldmodels.jepa.model import Jepa

_ENVIRONMENTS: Final = {"push-t": "swm/PushT-v1", "stable-two-room": "swm/TwoRoom-v1"}
_SETTERS: Final = [
    {"method": "_set_state", "args": {"state": {"value": "state", "in_dataset": True}}},
    {"method": "_set_goal_state", "args": {"goal_state": {"value": "goal_state", "in_dataset": True}}},
]
"""How its published evaluation puts an environment into a state of a dataset, and tells it the goal."""


def check_scorable(tasks: GoalTasks, config: PlanConfig) -> None:
    """Find out before any work whether stable-worldmodel can score these tasks.

    Args:
        tasks: Must be of one of its worlds, with goals that an episode reached.
        config: How it is to plan; ``goal`` must be ``latent``, what its planner has no word for is refused.

    Raises:
        ConfigError: The tasks are not of one of its worlds, or an option is not one of its planner's.
        MissingDependencyError: ``stable-worldmodel`` is not installed.
    """
    if tasks.task.name not in _ENVIRONMENTS or tasks.protocol == "opposite":
        raise ConfigError(
            f"task {tasks.task.name!r}, protocol {tasks.protocol!r}: stable-worldmodel scores "
            f"{' and '.join(_ENVIRONMENTS)}, with goals that an episode reached"
        )
    if config.goal != "latent" or config.is_bounded or config.has_warm_start or config.deadline_s is not None:
        raise ConfigError("its planner is plain: no landmarks, no bounds, no warm start, no deadline; leave these out")
    import_stable_worldmodel()


def score_by_stable_worldmodel(model: Jepa, tasks: GoalTasks, config: PlanConfig) -> list[Success]:
    """Let ``World.evaluate`` play tasks: with chance, with our model under its cross-entropy method, with its expert.

    Args:
        model: The world model.
        tasks: As :func:`check_scorable` wants them.
        config: How it plans, likewise.

    Raises:
        ConfigError: See :func:`check_scorable`.
        MissingDependencyError: See :func:`check_scorable`.
    """
    check_scorable(tasks, config)
    from stable_worldmodel.policy import PlanConfig as StablePlanConfig  # pyright: ignore[reportMissingImports]
    from stable_worldmodel.policy import RandomPolicy, WorldModelPolicy  # pyright: ignore[reportMissingImports]
    from stable_worldmodel.solver import CEMSolver  # pyright: ignore[reportMissingImports]

    scaler = ActionScaler.of_model(model, block=tasks.frame_skip)
    solver = CEMSolver(
        model=LatentCost(model, scaler),
        num_samples=config.num_samples,
        topk=config.num_elites,
        n_steps=config.num_iterations,
        seed=config.seed,
    )
    horizons = StablePlanConfig(
        horizon=config.horizon,
        receding_horizon=config.execute_horizon,
        action_block=tasks.frame_skip,
        warm_start=False,
    )
    policies: dict[str, Any] = {
        "random": RandomPolicy(seed=config.seed),
        "world model": WorldModelPolicy(solver, horizons, process={"action": scaler}),
    }
    if tasks.task.name == "stable-two-room":
        from stable_worldmodel.envs.two_room import ExpertPolicy  # pyright: ignore[reportMissingImports]

        policies["its expert"] = ExpertPolicy(seed=config.seed)
    return [_scored(name, policy, tasks) for name, policy in policies.items()]


def _scored(name: str, policy: Any, tasks: GoalTasks) -> Success:
    from stable_worldmodel import World  # pyright: ignore[reportMissingImports]

    with _quiet():
        world = World(
            _ENVIRONMENTS[tasks.task.name],
            num_envs=tasks.num_tasks,
            image_shape=(tasks.resolution, tasks.resolution),
            max_episode_steps=2 * tasks.budget_steps,
        )
        began_cpu_s = time.process_time()
        world.set_policy(policy)
        found = world.evaluate(
            dataset=_Recorded(tasks),
            episodes_idx=list(range(tasks.num_tasks)),
            start_steps=[0] * tasks.num_tasks,
            goal_offset=GOAL_OFFSET_STEPS,
            eval_budget=tasks.budget_steps,
            callables=_SETTERS,
        )
        world.close()
    return Success(
        name=f"{name}, by stable-worldmodel",
        protocol=tasks.protocol,
        num_successes=int(np.asarray(found["episode_successes"], bool).sum()),
        num_tasks=tasks.num_tasks,
        num_plans=0,
        cpu_s=time.process_time() - began_cpu_s,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionScaler:
    """Actions one by one in units of their spread, as its policies want them; ours are scaled block by block.

    Attributes:
        shift: Mean of each number of an action, over all places in a block.
        scale: Root mean square deviation from it.
    """

    shift: Float[np.ndarray, " A"]
    scale: Float[np.ndarray, " A"]

    @classmethod
    def of_model(cls, model: Jepa, *, block: int) -> "ActionScaler":
        """Return the scaler that goes with a model's blocks of so many actions."""
        shift = model.action_normalizer.shift.numpy().reshape(block, -1).astype(np.float64)
        scale = model.action_normalizer.scale.numpy().reshape(block, -1).astype(np.float64)
        mean = shift.mean(axis=0)
        return cls(shift=mean, scale=np.sqrt((scale**2 + (shift - mean) ** 2).mean(axis=0)))

    def transform(self, actions: Float[np.ndarray, "*batch A"]) -> Float[np.ndarray, "*batch A"]:
        """Return raw actions in units of their spread."""
        return (actions - self.shift) / self.scale

    def inverse_transform(self, actions: Float[np.ndarray, "*batch A"]) -> Float[np.ndarray, "*batch A"]:
        """Return raw actions."""
        return actions * self.scale + self.shift


class LatentCost:
    """A world model as its planners want one: the squared distance of the last predicted embedding to the goal's.

    Args:
        model: Predicts; start and goal are embedded once for each plan.
        scaler: Of the planner's actions.
    """

    def __init__(self, model: Jepa, scaler: ActionScaler) -> None:
        self._model = model.eval()
        block = model.action_dim // len(scaler.shift)
        self._shift = torch.from_numpy(np.tile(scaler.shift, block)).float()
        self._scale = torch.from_numpy(np.tile(scaler.scale, block)).float()

    def parameters(self) -> Iterator[Tensor]:
        """Return the model's weights, whose type its planners take over."""
        return self._model.parameters()

    @torch.no_grad()
    def get_cost(self, info_dict: dict[str, Any], action_candidates: Float[Tensor, "envs samples horizon A"]) -> Tensor:
        """Return [envs, samples]; keeps embeddings in the dictionary, which lasts as long as a plan is made."""
        if "forerun_present" not in info_dict:
            for name, key in (("forerun_present", "pixels"), ("forerun_goal", "goal")):
                info_dict[name] = self._model.encode_all(info_dict[key][:, 0, -1])
        actions = self._model.action_normalizer(action_candidates * self._scale + self._shift)
        history = History.of_present(info_dict["forerun_present"], action_dim=self._model.action_dim)
        states = self._model.rollout(history, actions, generator=torch.Generator())
        return GoalDistance(info_dict["forerun_goal"]).score(history, states, actions)

    criterion = get_cost


class _Recorded:
    """Tasks as one of its datasets: for each an episode of which the first and the last row matter."""

    column_names = ("pixels", "state")

    def __init__(self, tasks: GoalTasks) -> None:
        starts = tasks.task.worlds(tasks.contexts, tasks.starts).render(tasks.resolution)
        self._pixels = torch.from_numpy(np.stack([starts, tasks.goal_pixels], axis=1)).permute(0, 1, 4, 2, 3)
        ends = np.stack([tasks.starts, tasks.goals], axis=1)
        if tasks.task.name == "push-t":
            ends = np.stack([[published_state(state) for state in pair] for pair in ends])
        self._states = torch.from_numpy(ends)

    def load_chunk(
        self, episodes: Sequence[int], starts: Sequence[int], ends: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        """Return first and last row of each episode."""
        return [{"pixels": self._pixels[episode], "state": self._states[episode]} for episode in episodes]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the screen what its planner prints and what Gymnasium thinks of its environments."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
