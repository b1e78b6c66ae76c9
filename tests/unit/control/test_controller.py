"""The receding-horizon loop: warm starts, deadlines, fallbacks, plans made ahead; a clock of our own."""

import pytest
import torch

from forerun.core.control import INFEASIBLE, ActionBounds, History, Plan
from forerun.core.errors import ConfigError, ObjectiveError
from forerun.planning.controller import Controller, ControllerConfig
from forerun.planning.speculative import SpeculationConfig, SpeculativeController

BOUNDS = ActionBounds.symmetric(1)
STATES = torch.zeros(2, 1)


def plan(values, *, scores=(0.0, 0.0), is_complete=True):
    """A plan of the given actions for both environments."""
    actions = torch.tensor([values, values])[..., None]
    return Plan(
        actions=actions,
        states=actions,
        scores=torch.tensor(scores),
        futures=actions[:, None],
        future_actions=actions[:, None],
        future_scores=torch.tensor(scores)[:, None],
        num_iterations=1,
        is_complete=is_complete,
        num_candidates=1,
    )


class Script:
    """A planner that returns what it is told, takes the time it is told, and keeps what it was asked."""

    def __init__(self, *answers, seconds=()):
        self.answers, self.seconds, self.asked = list(answers), list(seconds), []
        self.now = 0.0

    def plan(self, history, *, generator, warm_start=None, is_late=lambda: False):
        self.asked.append((history, warm_start))
        self.now += self.seconds.pop(0) if self.seconds else 0.0
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def control(script, **options):
    return Controller(ControllerConfig(**options), planner=script, bounds=BOUNDS, clock=lambda: script.now)


def acted(controller, num_steps, states=STATES):
    return [controller.act(states)[0].item() for _ in range(num_steps)]


def test_only_the_first_action_is_executed_and_the_rest_warm_starts():
    script = Script(plan([0.1, 0.2, 0.3]), plan([0.4, 0.5, 0.6]))
    assert acted(control(script), 2) == pytest.approx([0.1, 0.4])
    assert script.asked[0][1] is None
    assert script.asked[1][1][0, :, 0].tolist() == pytest.approx([0.2, 0.3, 0.3])


def test_several_actions_of_a_plan():
    script = Script(plan([0.1, 0.2, 0.3]), plan([0.4, 0.5, 0.6]))
    assert acted(control(script, execute_horizon=2, has_warm_start=False), 4) == pytest.approx([0.1, 0.2, 0.4, 0.5])
    assert script.asked[1][1] is None


def test_planners_see_as_much_history_as_configured():
    script = Script(*[plan([0.1 * step, 0.0]) for step in range(1, 5)])
    controller = control(script, history=3)
    for value in range(4):
        controller.act(torch.full((2, 1), float(value)))
    lengths = [asked[0].states.shape[1] for asked in script.asked]
    assert lengths == [1, 2, 3, 3]
    last = script.asked[-1][0]
    assert last.states[0, :, 0].tolist() == [1, 2, 3]
    assert last.actions[0, :, 0].tolist() == pytest.approx([0.2, 0.3])


def test_a_late_plan_serves_the_next_step_and_is_counted():
    script = Script(plan([0.1, 0.2, 0.3]), plan([0.4, 0.5, 0.6]), plan([0.7, 0.8, 0.9]), seconds=[0.0, 2.0, 0.0])
    controller = control(script, deadline_s=1.0, execute_horizon=2)
    # Plan 1 gives 0.1 and 0.2; plan 2 is late, so 0.3 acts; its second action follows.
    assert acted(controller, 4) == pytest.approx([0.1, 0.2, 0.3, 0.5])
    assert controller.report.num_late == 1
    assert controller.report.plan_seconds == [0.0, 2.0]


def test_a_plan_that_was_cut_short_in_time_is_no_late_one():
    script = Script(plan([0.1, 0.2]), plan([0.4, 0.5], is_complete=False), seconds=[0.0, 2.0])
    controller = control(script, deadline_s=1.0)
    assert acted(controller, 2) == pytest.approx([0.1, 0.4])
    assert (controller.report.num_cut_short, controller.report.num_late) == (1, 0)


@pytest.mark.parametrize(("fallback", "action"), [("continue", 0.2), ("rest", 0.0)])
def test_an_error_in_an_episode_is_bridged_and_counted(fallback, action):
    script = Script(plan([0.1, 0.2, 0.3]), ObjectiveError("not a number"), plan([0.7, 0.8, 0.9]))
    controller = control(script, fallback=fallback)
    assert acted(controller, 3) == pytest.approx([0.1, action, 0.7])
    assert controller.report.num_failed == 1
    assert controller.report.last_error == "not a number"


def test_an_error_before_anything_moves_is_raised():
    with pytest.raises(ObjectiveError):
        control(Script(ObjectiveError("not a number"))).act(STATES)


def test_infeasible_plans_are_counted_and_replaced_where_asked():
    broken = plan([0.9, 0.9], scores=(0.0, 2 * INFEASIBLE))
    for executes, wanted in ((True, [0.9, 0.9]), (False, [0.9, 0.2])):
        controller = control(Script(plan([0.1, 0.2]), broken), executes_infeasible=executes)
        controller.act(STATES)
        assert controller.act(STATES)[:, 0].tolist() == pytest.approx(wanted)
        assert controller.report.num_infeasible == 1


def test_actions_are_clamped_to_their_box():
    assert acted(control(Script(plan([3.0, -3.0])), execute_horizon=2), 2) == [1.0, -1.0]


@pytest.mark.parametrize("wrong", [{"execute_horizon": 0}, {"history": 0}, {"deadline_s": 0.0}])
def test_wrong_options(wrong):
    with pytest.raises(ConfigError):
        ControllerConfig(**wrong)


class Drift:
    """The state grows by the action; as a dynamics and, with an error, as the world."""

    action_dim = 1

    def __init__(self):
        self.num_steps = []

    def rollout(self, history, actions, *, generator):
        self.num_steps.append(actions.shape[2])
        return history.present[:, None, None] + actions.cumsum(dim=2)


class Aiming:
    """Plans to be at 0 in one step, and counts how many environments it planned for."""

    def __init__(self):
        self.num_planned = []

    def plan(self, history, *, generator, warm_start=None, is_late=lambda: False):
        self.num_planned.append(history.num_envs)
        actions = (-0.5 * history.present)[:, None].expand(-1, 3, -1)
        states = history.present[:, None] + actions.cumsum(dim=1)
        zeros = torch.zeros(history.num_envs)
        return Plan(
            actions=actions, states=states, scores=zeros, futures=states[:, None], future_actions=actions[:, None],
            future_scores=zeros[:, None], num_iterations=1, is_complete=True, num_candidates=1,
        )  # fmt: skip


def speculative(planner, tolerance=0.1, dynamics=None, **options):
    return SpeculativeController(
        ControllerConfig(**options),
        speculation=SpeculationConfig(tolerance=tolerance, num_guesses=2),
        planner=planner,
        dynamics=dynamics or Drift(),
        bounds=BOUNDS,
        unit=torch.ones(1),
    )


def drive(controller, errors, *, anticipates=True):
    """Act in two environments whose second one is off by an error after each action."""
    states, actions = torch.tensor([[0.8], [-0.4]]), []
    for error in errors:
        actions.append(controller.act(states))
        if anticipates:
            controller.anticipate()
        states = states + actions[-1] + torch.tensor([[0.0], [error]])
    return torch.stack(actions)


def test_a_guess_that_comes_true_has_its_plan_ready():
    planner = Aiming()
    controller = speculative(planner)
    actions = drive(controller, [0.0, 0.0, 0.0])
    report = controller.speculation_report
    assert (report.num_hits, report.num_misses, report.hit_rate) == (4, 0, 1.0)
    assert planner.num_planned == [2, 4, 4, 4]
    assert (len(report.hit_seconds), len(report.miss_seconds), len(report.ahead_seconds)) == (2, 0, 3)
    assert torch.allclose(actions, drive(speculative(Aiming()), [0.0, 0.0, 0.0], anticipates=False))


def test_a_guess_costs_one_step_of_the_dynamics():
    dynamics = Drift()
    drive(speculative(Aiming(), dynamics=dynamics), [0.0, 0.0])
    assert dynamics.num_steps == [1, 1]


def test_only_environments_that_surprise_are_planned_anew():
    planner = Aiming()
    controller = speculative(planner)
    drive(controller, [0.5, 0.0])
    report = controller.speculation_report
    assert (report.num_hits, report.num_misses) == (1, 1)
    assert planner.num_planned == [2, 4, 1, 4]
    assert len(report.miss_seconds) == 1


def test_what_is_done_after_a_miss_is_what_is_done_without_speculation():
    errors = [0.5, -0.3, 0.0, 0.2]
    plain = drive(speculative(Aiming()), errors, anticipates=False)
    assert torch.allclose(drive(speculative(Aiming()), errors), plain, atol=1e-6)


def test_within_tolerance_the_plan_of_the_guess_is_taken():
    near = drive(speculative(Aiming(), tolerance=0.5), [0.2, 0.0])
    exact = drive(speculative(Aiming(), tolerance=0.0), [0.2, 0.0])
    assert not torch.allclose(near[1, 1], exact[1, 1])
    assert torch.allclose(near[1, 0], exact[1, 0])


def test_nothing_is_guessed_before_the_first_action_and_a_reset_forgets():
    planner = Aiming()
    controller = speculative(planner)
    controller.anticipate()
    assert planner.num_planned == []
    drive(controller, [0.0, 0.0])
    controller.reset()
    assert controller.speculation_report.num_hits == 0
    controller.act(torch.zeros(2, 1))
    assert planner.num_planned[-1] == 2


def test_speculation_is_for_a_plan_at_each_step():
    with pytest.raises(ConfigError, match="execute_horizon=2: must be 1"):
        speculative(Aiming(), execute_horizon=2)


def test_histories_are_checked():
    with pytest.raises(ConfigError, match="the present alone"):
        History(states=torch.zeros(2, 3, 1), actions=torch.zeros(2, 3, 1))
    with pytest.raises(ConfigError, match="low below high"):
        ActionBounds(low=torch.zeros(2), high=torch.zeros(2))
