"""Who acts in a task: a planner with a world model, the expert that knows the map, and chance."""

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from forerun.core.control import History, Plan, moved_forward
from forerun.core.generator import keyed_generator
from forerun.envs.pixel_world import PixelWorld
from forerun.envs.two_room import SPEED
from forerun.envs.two_room_policies import expert_action
from forerun.recipes.world.goal_tasks import GoalTasks
from forerun.recipes.world.planners import PlanConfig, build_planner
from forerun.recipes.world.wishes import Wish, picture_wish
from forerun.worldmodels.cloning import ClonedPolicy
from forerun.worldmodels.jepa.inverse import InverseModel
from forerun.worldmodels.jepa.surprise import one_step_surprise
from forerun.worldmodels.latent_model import LatentModel


class Agent(Protocol):
    """Acts in the tasks that are not done yet."""

    def act(
        self,
        world: PixelWorld,
        frames: UInt8[np.ndarray, "active height width 3"],
        active: Int64[np.ndarray, " active"],
    ) -> Float[np.ndarray, "active block"]:
        """Return a block of raw actions for each active task.

        Args:
            world: All tasks; only an agent that knows the map may look into it.
            frames: What the camera sees of the active ones.
            active: Their numbers, ascending.
        """
        ...


class RandomAgent:
    """Acts by chance, evenly in the box of actions.

    Args:
        tasks: Where it acts.
        seed: Draws.
    """

    def __init__(self, tasks: GoalTasks, *, seed: int) -> None:
        self._block, self._rng = tasks.task.action_dim * tasks.frame_skip, np.random.default_rng(seed)

    def act(self, world: PixelWorld, frames: np.ndarray, active: np.ndarray) -> np.ndarray:
        """As :meth:`Agent.act`."""
        return self._rng.uniform(-1, 1, (len(active), self._block))


class ExpertAgent:
    """Knows map and positions: the most that can be reached.

    Args:
        tasks: Where it acts.
    """

    def __init__(self, tasks: GoalTasks) -> None:
        self._tasks = tasks

    def act(self, world: PixelWorld, frames: np.ndarray, active: np.ndarray) -> np.ndarray:
        """As :meth:`Agent.act`: the block is what the expert would do step by step."""
        blocks: list[np.ndarray] = []
        looks = self._tasks.looks
        for task in active:
            position, block = world.states[task].copy(), list[np.ndarray]()
            for _ in range(self._tasks.frame_skip):
                block.append(expert_action(looks[task], position, self._tasks.goals[task]))
                position = position + SPEED * block[-1]
            blocks.append(np.concatenate(block))
        return np.stack(blocks)


class RecordedAgent:
    """Repeats the actions that led from start to goal in the recorded episode, then stands still.

    The most that can be reached where no expert is at hand; less than everything, as only the first picture's state is
    that of the episode, not what the simulator remembers of contacts.

    Args:
        tasks: Where it acts; each with recorded actions.
    """

    def __init__(self, tasks: GoalTasks) -> None:
        self._recorded, self._block = tasks.recorded, 0

    def act(self, world: PixelWorld, frames: np.ndarray, active: np.ndarray) -> np.ndarray:
        """As :meth:`Agent.act`."""
        self._block += 1
        if self._block > self._recorded.shape[1]:
            return np.zeros((len(active), self._recorded.shape[2]))
        return self._recorded[active, self._block - 1]


class CloningAgent:
    """Does what a cloned policy does, block by block; looks at the frames alone.

    Args:
        policy: Cloned from recorded episodes.
        tasks: Where it acts.
    """

    def __init__(self, policy: ClonedPolicy, tasks: GoalTasks) -> None:
        self._policy, self._goals = policy, torch.from_numpy(tasks.goal_pixels)

    def act(self, world: PixelWorld, frames: np.ndarray, active: np.ndarray) -> np.ndarray:
        """As :meth:`Agent.act`."""
        return self._policy.act(torch.from_numpy(frames), self._goals[torch.from_numpy(active)]).numpy()


def ceiling_of(tasks: GoalTasks) -> tuple[str, Agent]:
    """Return who shows what can be reached, with a name: the expert where there is one."""
    if tasks.task.name == "two-room":
        return "expert", ExpertAgent(tasks)
    return "recorded actions", RecordedAgent(tasks)


@dataclass(frozen=True, kw_only=True, slots=True)
class MadePlan:
    """A plan, and when it was made.

    Attributes:
        tasks: Numbers of the tasks it is for.
        plan: For these, in their order.
        block: Blocks that had been executed when it was made.
    """

    tasks: Int64[np.ndarray, " planned"]
    plan: Plan
    block: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recent:
    """The last embeddings of all tasks, and the action after each, in the model's units."""

    states: Float[Tensor, "tasks steps D"]
    actions: Float[Tensor, "tasks steps action"]


class PlanningAgent:
    """Plans with a world model in latent space, all active tasks at once; goals are embedded once.

    Args:
        model: The world model.
        tasks: Where it acts.
        config: How it plans.
        wish: What is wanted of a goal's embedding; without one, what is seen is to be like the goal's picture.
        inverse: Guesses actions, for ``num_proposals``.
        alarm_above: Surprise of a frame above which its task is planned for anew at once; ``None``: plans are executed
            as far as ``execute_horizon`` whatever is seen.
    """

    def __init__(
        self,
        model: LatentModel,
        tasks: GoalTasks,
        config: PlanConfig,
        *,
        wish: Wish = picture_wish,
        inverse: InverseModel | None = None,
        alarm_above: float | None = None,
    ) -> None:
        self.config = config
        self._model, self._wish, self._inverse, self._alarm_above = model, wish, inverse, alarm_above
        self._goals = model.encode_all(torch.from_numpy(tasks.goal_pixels))
        self._box = model.action_bounds(1.0)
        num_tasks = tasks.num_tasks
        self._blocks = torch.zeros(num_tasks, config.horizon, model.action_dim)
        self._num_executed = np.full(num_tasks, config.execute_horizon)
        self._is_planned = False
        self._recent: _Recent | None = None
        self._block = 0
        self.num_alarms = 0
        """Frames that were above ``alarm_above``."""
        self.plans: list[MadePlan] = []
        """Every plan made."""

    def act(self, world: PixelWorld, frames: np.ndarray, active: np.ndarray) -> np.ndarray:
        """As :meth:`Agent.act`; looks at the frames alone."""
        latents = self._model.encode_all(torch.from_numpy(frames))
        is_due = self._num_executed[active] >= self.config.execute_horizon
        if self._alarm_above is not None:
            is_due |= self._is_surprised(latents, active)
        if is_due.any():
            self._plan(latents[torch.from_numpy(is_due)], active[is_due])
        rows = torch.from_numpy(active)
        blocks = self._blocks[rows, torch.from_numpy(self._num_executed[active])]
        self._num_executed[active] += 1
        self._block += 1
        self._remember(latents, blocks, rows)
        return self._model.action_normalizer.inverse(blocks).numpy()

    @property
    def num_plans(self) -> int:
        """Plans made, each task's counted."""
        return sum(len(made.tasks) for made in self.plans)

    def _is_surprised(self, latents: Tensor, active: np.ndarray) -> Bool[np.ndarray, " active"]:
        recent, rows = self._recent, torch.from_numpy(active)
        if recent is None or self._alarm_above is None:
            return np.zeros(len(active), bool)
        seen = History(states=recent.states[rows], actions=recent.actions[rows, :-1])
        surprises = one_step_surprise(self._model, seen, recent.actions[rows, -1], latents)
        is_alarm: np.ndarray = (surprises > self._alarm_above).numpy()
        self.num_alarms += int(is_alarm.sum())
        return is_alarm

    def _remember(self, latents: Tensor, blocks: Tensor, rows: Tensor) -> None:
        """Keep as much as the predictor sees; of actions, what the world makes of them: it clips to the box."""
        states = latents.new_zeros(len(self._blocks), 1, latents.shape[1])
        actions = blocks.new_zeros(len(self._blocks), 1, blocks.shape[1])
        states[rows, 0], actions[rows, 0] = latents, self._box.clamp(blocks)
        if self._recent is not None:
            states = torch.cat([self._recent.states, states], dim=1)
            actions = torch.cat([self._recent.actions, actions], dim=1)
        most = self._model.predictor.history
        self._recent = _Recent(states=states[:, -most:], actions=actions[:, -most:])

    def _plan(self, present: Tensor, due: np.ndarray) -> None:
        """Plan for the tasks that are due, and put their blocks in place."""
        config, rows = self.config, torch.from_numpy(due)
        goals = self._goals[rows]
        planner = build_planner(
            config,
            dynamics=self._model,
            objective=self._wish(goals),
            bounds=self._box if config.is_bounded else None,
            proposal=None if self._inverse is None else self._inverse.towards(goals),
        )
        deadline_s, began = config.deadline_s, time.perf_counter()
        with torch.autocast(present.device.type, dtype=torch.bfloat16, enabled=config.has_autocast):
            plan = planner.plan(
                self._seen(present, rows),
                generator=keyed_generator(config.seed, "plan", len(self.plans)),
                warm_start=self._warm_start(due) if config.has_warm_start and self._is_planned else None,
                is_late=lambda: deadline_s is not None and time.perf_counter() - began > deadline_s,
            )
        self.plans.append(MadePlan(tasks=due, plan=plan, block=self._block))
        self._blocks[rows] = plan.actions
        self._num_executed[due] = 0
        self._is_planned = True

    def _seen(self, present: Tensor, rows: Tensor) -> History:
        """Return what some tasks saw: their present frame, and as many before it as the planner takes."""
        num_before, recent = self.config.num_context - 1, self._recent
        if recent is None or not num_before:
            return History.of_present(present, action_dim=self._model.action_dim)
        states = torch.cat([recent.states[rows, -num_before:], present[:, None]], dim=1)
        return History(states=states, actions=recent.actions[rows, -num_before:])

    def _warm_start(self, due: np.ndarray) -> Tensor:
        """Return what is left of the last plan of each task; tasks differ in how much that is."""
        return torch.cat(
            [moved_forward(self._blocks[task : task + 1], int(self._num_executed[task])) for task in due.tolist()]
        )
