"""Scored by others: our world models in the evaluation of ``stable-worldmodel``, with its worlds and planner."""

import contextlib
import io
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from forerun.recipes.world.evaluation import Contender, Success
from forerun.recipes.world.goal_tasks import GOAL_OFFSET_STEPS, GoalTasks
from forerun.recipes.world.planners import PlanConfig
from forerun.recipes.world.wishes import Wish, picture_wish
from forerun.worldmodels.latent_model import LatentModel

_ENVIRONMENTS: Final = {"push-t": "swm/PushT-v1", "stable-two-room": "swm/TwoRoom-v1"}
_SETTERS: Final = [
    {"method": "_set_state", "args": {"state": {"value": "state", "in_dataset": True}}},
    {"method": "_set_goal_state", "args": {"goal_state": {"value": "goal_state", "in_dataset": True}}},
]
"""How its published evaluation puts an environment into a state of a dataset, and tells it the goal."""
_NOT_ITS_OWN: Final = (
    "planner", "num_context", "returns", "is_bounded", "has_warm_start", "num_proposals", "has_autocast", "deadline_s"
)  # fmt: skip
"""Options of ours that its planner has no word for."""


def check_scorable(tasks: GoalTasks, contenders: Mapping[str, Contender]) -> None:
    """Find out before any work whether stable-worldmodel can score these tasks.

    Args:
        tasks: Must be of one of its worlds, with goals that an episode reached.
        contenders: Must be planned with in ways that its planner has a word for; a cost may be any.

    Raises:
        ConfigError: The tasks are not of one of its worlds, or an option is not one of its planner's.
        MissingDependencyError: ``stable-worldmodel`` is not installed.
    """
    if tasks.task.name not in _ENVIRONMENTS or tasks.protocol == "opposite":
        raise ConfigError(
            f"task {tasks.task.name!r}, protocol {tasks.protocol!r}: stable-worldmodel scores "
            f"{' and '.join(_ENVIRONMENTS)}, with goals that an episode reached"
        )
    for name, contender in contenders.items():
        config, defaults = contender.config, PlanConfig()
        if others := [key for key in _NOT_ITS_OWN if getattr(config, key) != getattr(defaults, key)]:
            raise ConfigError(
                f"{name}: stable-worldmodel's planner is plain, and has no {' and no '.join(others)}; leave it out"
            )
    import_stable_worldmodel()


def score_by_stable_worldmodel(
    contenders: Mapping[str, Contender], tasks: GoalTasks, *, seed: int = 0, has_bounds: bool = True
) -> list[Success]:
    """Let ``World.evaluate`` play tasks: with chance, with models under its cross-entropy method, with its expert.

    Args:
        contenders: Models by name, and how they plan, as :func:`check_scorable` wants them.
        tasks: Likewise.
        seed: Of chance and expert.
        has_bounds: Whether chance and expert play, too.

    Raises:
        ConfigError: See :func:`check_scorable`.
        MissingDependencyError: See :func:`check_scorable`.
    """
    check_scorable(tasks, contenders)
    from stable_worldmodel.policy import RandomPolicy  # pyright: ignore[reportMissingImports]

    policies: dict[str, Any] = {"random": RandomPolicy(seed=seed)} if has_bounds else {}
    policies |= {name: _its_policy(contender, tasks) for name, contender in contenders.items()}
    if has_bounds and tasks.task.name == "stable-two-room":
        from stable_worldmodel.envs.two_room import ExpertPolicy  # pyright: ignore[reportMissingImports]

        policies["its expert"] = ExpertPolicy(seed=seed)
    return [_scored(name, policy, tasks) for name, policy in policies.items()]


def _its_policy(contender: Contender, tasks: GoalTasks) -> Any:
    """Return its model-predictive policy with one of our models."""
    from stable_worldmodel.policy import PlanConfig as StablePlanConfig  # pyright: ignore[reportMissingImports]
    from stable_worldmodel.policy import WorldModelPolicy  # pyright: ignore[reportMissingImports]
    from stable_worldmodel.solver import CEMSolver  # pyright: ignore[reportMissingImports]

    config, model = contender.config, contender.model
    scaler = ActionScaler.of_model(model, block=tasks.frame_skip)
    solver = CEMSolver(
        model=LatentCost(model, scaler, wish=contender.wished()),
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
    return WorldModelPolicy(solver, horizons, process={"action": scaler})


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
    def of_model(cls, model: LatentModel, *, block: int) -> "ActionScaler":
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
    """A world model as its planners want one: what an imagined future costs.

    Args:
        model: Predicts; start and goal are embedded once for each plan.
        scaler: Of the planner's actions.
        wish: What is wanted of a future; by default that its last embedding is the goal's, as published.
    """

    def __init__(self, model: LatentModel, scaler: ActionScaler, *, wish: Wish = picture_wish) -> None:
        self._model, self._wish = model, wish
        block = model.action_dim // len(scaler.shift)
        self._shift = torch.from_numpy(np.tile(scaler.shift, block)).float()
        self._scale = torch.from_numpy(np.tile(scaler.scale, block)).float()

    def parameters(self) -> Iterator[Tensor]:
        """Return a tensor of the model, whose type its planners take over."""
        yield self._model.action_normalizer.shift

    @torch.no_grad()
    def get_cost(self, info_dict: dict[str, Any], action_candidates: Float[Tensor, "envs samples horizon A"]) -> Tensor:
        """Return [envs, samples]; keeps what is embedded in the dictionary, which lasts as long as a plan is made."""
        if "forerun_present" not in info_dict:
            info_dict["forerun_present"] = self._model.encode_all(info_dict["pixels"][:, 0, -1])
            info_dict["forerun_wanted"] = self._wish(self._model.encode_all(info_dict["goal"][:, 0, -1]))
        actions = self._model.action_normalizer(action_candidates * self._scale + self._shift)
        history = History.of_present(info_dict["forerun_present"], action_dim=self._model.action_dim)
        states = self._model.rollout(history, actions, generator=torch.Generator())
        return -info_dict["forerun_wanted"].score(history, states, actions)

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
