"""Planning in a thread: what acts is the newest plan, from where the time has come to; nobody waits."""

import threading

import pytest
import torch

from forerun.core.control import INFEASIBLE, ActionBounds, Plan
from forerun.core.errors import ConfigError, ObjectiveError
from forerun.planning.asynchronous import AsynchronousController
from forerun.planning.controller import ControllerConfig

BOUNDS = ActionBounds.symmetric(1, 100.0)
TIMEOUT_S = 20.0


class Counting:
    """Plans that count up from the state they are for; held back while the gate is closed."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.presents, self.warm_starts, self.threads = [], [], set()
        self.error, self.score = None, 0.0

    def plan(self, history, *, generator, warm_start=None, is_late=lambda: False):
        self.begun.release()
        assert self.gate.wait(TIMEOUT_S)
        self.presents.append(float(history.present))
        self.warm_starts.append(warm_start)
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error
        actions = history.present[:, None] + torch.arange(4.0)[None, :, None]
        scores = torch.tensor([self.score])
        return Plan(
            actions=actions, states=actions, scores=scores, futures=actions[:, None], future_actions=actions[:, None],
            future_scores=scores[:, None], num_iterations=1, is_complete=True, num_candidates=1,
        )  # fmt: skip


class Tenfold:
    """The next state is the last one and a tenth of the action."""

    action_dim = 1

    def rollout(self, history, actions, *, generator):
        return history.present[:, None, None] + 0.1 * actions.cumsum(dim=2)


@pytest.fixture
def planner():
    return Counting()


@pytest.fixture
def make(planner):
    made = []

    def build(**options):
        dynamics = options.pop("dynamics", None)
        controller = AsynchronousController(
            ControllerConfig(**options), planner=planner, bounds=BOUNDS, dynamics=dynamics
        )
        made.append(controller)
        return controller

    yield build
    planner.gate.set()
    for controller in made:
        controller.close()


def act(controller, value):
    return float(controller.act(torch.tensor([[value]])))


def test_the_newest_plan_acts_from_where_the_time_has_come_to(planner, make):
    controller = make()
    assert act(controller, 10.0) == 10.0
    controller.settle()
    # Planned for 10 at step 0: at step 1 its second action is due.
    assert act(controller, 20.0) == 11.0
    controller.settle()
    assert act(controller, 30.0) == 21.0
    controller.settle()
    assert planner.presents == [10.0, 10.0, 20.0, 30.0]
    assert len(planner.threads) == 2


def test_with_a_dynamics_plans_are_for_the_observation_to_come(planner, make):
    controller = make(dynamics=Tenfold())
    assert act(controller, 10.0) == 10.0
    controller.settle()
    assert planner.presents[-1] == pytest.approx(11.0)
    assert act(controller, 11.2) == pytest.approx(11.0), "the first action of the plan made for 11.0"
    controller.settle()
    assert planner.presents[-1] == pytest.approx(11.2 + 1.1)


def test_while_a_plan_is_being_made_the_last_one_goes_on_and_is_counted(planner, make):
    controller = make()
    act(controller, 10.0)
    controller.settle()
    while planner.begun.acquire(blocking=False):
        pass
    planner.gate.clear()
    assert act(controller, 20.0) == 11.0
    assert planner.begun.acquire(timeout=TIMEOUT_S), "the thread is at work on the situation of step 1"
    assert [act(controller, value) for value in (30.0, 40.0)] == [12.0, 13.0]
    assert controller.report.num_late == 2
    planner.gate.set()
    controller.settle()
    # The plan for step 1 came three steps late; that for step 2 was given up for that of step 3.
    assert planner.presents[-2:] == [20.0, 40.0]
    assert act(controller, 50.0) == 41.0


def test_rest_is_an_answer_to_lateness(planner, make):
    controller = make(fallback="rest")
    act(controller, 10.0)
    controller.settle()
    act(controller, 20.0)
    controller.settle()
    planner.gate.clear()
    act(controller, 30.0)
    assert act(controller, 40.0) == 0.0


def test_warm_starts_are_what_is_left_at_the_plans_first_step(planner, make):
    controller = make(dynamics=Tenfold())
    act(controller, 10.0)
    controller.settle()
    assert planner.warm_starts[0] is None
    assert planner.warm_starts[1][0, :, 0].tolist() == [11.0, 12.0, 13.0, 13.0]


def test_errors_in_the_thread_are_bridged_and_counted(planner, make):
    controller = make()
    act(controller, 10.0)
    controller.settle()
    planner.error = ObjectiveError("not a number")
    act(controller, 20.0)
    controller.settle()
    assert act(controller, 30.0) == 12.0
    assert (controller.report.num_failed, controller.report.last_error) == (1, "not a number")


def test_infeasible_plans_are_counted_and_replaced_where_asked(planner, make):
    controller = make(executes_infeasible=False)
    act(controller, 10.0)
    controller.settle()
    planner.score = 2 * INFEASIBLE
    act(controller, 20.0)
    controller.settle()
    assert act(controller, 30.0) == 12.0
    assert controller.report.num_infeasible == 1


def test_a_reset_drops_the_plan_that_was_being_made(planner, make):
    controller = make()
    act(controller, 10.0)
    controller.reset()
    assert act(controller, 20.0) == 20.0
    assert controller.report.num_late == 0


def test_an_unforeseen_error_ends_the_episode_and_does_not_hang(planner, make):
    controller = make()
    act(controller, 10.0)
    controller.settle()
    planner.error = ZeroDivisionError("a bug")
    act(controller, 20.0)
    controller.settle()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        act(controller, 30.0)


@pytest.mark.parametrize("wrong", [{"execute_horizon": 2}, {"deadline_s": 1.0}])
def test_the_step_is_the_deadline(make, wrong):
    with pytest.raises(ConfigError, match="must be 1 and None"):
        make(**wrong)
