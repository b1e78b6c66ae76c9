"""Tasks whose optimum is known: the optimum is one, and what is built on them behaves."""

import math
from dataclasses import replace

import pytest
import torch

from forerun.core.control import ActionBounds, History
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.envs import control_double_integrator as integrator
from forerun.envs import control_pendulum as pendulum
from forerun.envs.control_dynamics import FaultyDynamics, TrueDynamics
from forerun.envs.control_env import ActuatorFault, FaultyActuator, Transition
from forerun.envs.control_optimum import LinearQuadratic, finite_horizon_gains, solve_on_grid
from forerun.envs.control_task import SmoothNoise
from forerun.envs.control_tasks import TASK_NAMES, control_task
from forerun.planning.episodes import run_episodes

TASKS = ["double-integrator", "pendulum"]
MUJOCO = ("gymnasium", "mujoco", "imageio")  # Gymnasium's MuJoCo environments import imageio
NEEDED = {
    "halfcheetah": MUJOCO,
    "walker2d": MUJOCO,
    "pointmaze": (*MUJOCO, "gymnasium_robotics"),
    "push": (*MUJOCO, "metaworld"),
}


def returns(task, policy, num_episodes=12):
    env = task.make_env(num_episodes)
    return torch.from_numpy(run_episodes(env, policy, task=task, seeds=range(num_episodes), source="test").returns)


def test_riccatis_recursion_gives_the_least_cost_of_a_scalar_problem():
    one = torch.ones(1, 1)
    problem = LinearQuadratic(transition=one, control=one, state_cost=one, action_cost=one)
    gains, costs = finite_horizon_gains(problem, 200)
    golden = (1 + math.sqrt(5)) / 2  # the fixed point of p = 1 + p - p^2 / (1 + p)
    assert float(costs[0]) == pytest.approx(golden, rel=1e-6)
    assert float(gains[0]) == pytest.approx(golden / (1 + golden), rel=1e-6)
    assert float(costs[-1]) == 1.0
    assert float(gains[-1]) == 0.0


def test_the_optimal_control_of_the_integrator_reaches_the_predicted_return_and_never_saturates():
    task = control_task("double-integrator")
    env = task.make_env(40)
    starts = env.reset(range(40))
    largest = 0.0

    def policy(states, env_step):
        nonlocal largest
        actions = integrator.best_action(states, env_step)
        largest = max(largest, float(actions.abs().max()))
        return actions

    found = torch.from_numpy(run_episodes(env, policy, task=task, seeds=range(40), source="test").returns)
    assert found.tolist() == pytest.approx(integrator.best_return(starts).tolist(), rel=1e-4)
    assert largest < 1.0
    for factor in (0.9, 1.1):
        other = returns(task, lambda states, step, factor=factor: factor * integrator.best_action(states, step))
        assert bool((other < found[:12]).all())


def test_dynamic_programming_agrees_with_riccati_where_both_apply():
    num_points = 61
    axis = torch.linspace(-1.0, 1.0, num_points)
    optimum = solve_on_grid(
        axes=(axis, axis),
        is_periodic=False,
        actions=torch.linspace(-1.0, 1.0, 61),
        num_steps=20,
        transition=integrator.transition,
        reward=lambda states, actions: -integrator.PROBLEM.cost(states, actions),
    )
    _, costs = finite_horizon_gains(integrator.PROBLEM, 20)
    states = torch.tensor([[0.3, 0.0], [-0.2, 0.2], [0.0, -0.3]])
    exact = -(states @ costs[0] * states).sum(dim=-1)
    # Linear interpolation of -x'Px between points h apart is too low by at most h^2/8 of its second derivatives, at
    # each of the steps; a grid of actions d apart loses at most (R + B'PB) d^2/4 more.
    spacing = 2.0 / (num_points - 1)
    lost = sum(float(spacing**2 / 4 * cost.diagonal().sum() + 1.1 * spacing**2 / 4) for cost in costs)
    gap = exact - optimum.value(states, 0)
    assert float(gap.min()) > -1e-4
    assert float(gap.max()) < lost


def test_the_pendulum_is_gymnasiums():
    gymnasium = pytest.importorskip("gymnasium")
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    theirs.state = [2.5, -0.5]
    state = torch.tensor([math.cos(2.5), math.sin(2.5), -0.5])
    for step in range(60):
        action = torch.tensor([2.0 * math.sin(step / 3)])
        after = pendulum.transition(state, action)
        paid = float(pendulum.reward(state, action, after))
        seen, reward, *_ = theirs.step(action.numpy())
        assert after.tolist() == pytest.approx(seen.tolist(), abs=2e-3)
        assert paid == pytest.approx(reward, abs=2e-3)
        state = after


def test_the_grids_policy_swings_up_from_anywhere():
    task = control_task("pendulum")
    env = task.make_env(12)
    found = run_episodes(env, task.best_policy, task=task, seeds=range(12), source="test")
    assert all(episode.states[-1][0] > 0.99 for episode in found.episodes)
    assert found.returns.mean() > returns(task, task.behaviour(12, keyed_generator(0))).mean()


@pytest.mark.parametrize("name", TASKS)
def test_episodes_are_functions_of_seeds_and_actions(name):
    task = control_task(name)
    env = task.make_env(2)
    first = env.reset([3, 4])
    assert torch.equal(env.reset([4, 3]), first.flip(0))
    ended = [env.step(torch.zeros(2, 1)).truncated.tolist() for _ in range(task.num_steps)]
    assert ended == [[False, False]] * (task.num_steps - 1) + [[True, True]]
    after = env.step(torch.zeros(2, 1))
    assert after.rewards.tolist() == [0, 0]
    with pytest.raises(ConfigError, match="1 seeds for 2 environments"):
        env.reset([1])


@pytest.mark.parametrize("name", TASKS)
def test_true_dynamics_predict_the_environment(name):
    task = control_task(name)
    env = task.make_env(3)
    present = env.reset(range(3))
    actions = 4 * torch.rand(3, 6, task.action_dim, generator=keyed_generator(0)) - 2
    model = TrueDynamics(task.transition, bounds=task.bounds)
    history = History.of_present(present, action_dim=task.action_dim)
    predicted = model.rollout(history, actions[:, None], generator=keyed_generator(0))[:, 0]
    seen = torch.stack([env.step(actions[:, step]).states for step in range(6)], dim=1)
    assert torch.allclose(predicted, seen, atol=1e-5)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_task_is_consistent(name):
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    task = control_task(name)
    env = task.make_env(2)
    states = env.reset([0, 1])
    assert states.shape == (2, len(task.state_names))
    assert env.bounds.low.tolist() == task.bounds.low.tolist()
    actions = task.behaviour(2, keyed_generator(0))(states, 0)
    made = env.step(actions)
    assert actions.shape == (2, task.action_dim)
    paid = task.reward(states, actions, made.states)
    assert paid.shape == (2,)
    assert paid.tolist() == pytest.approx(made.rewards.tolist(), abs=0.3 if name in NEEDED else 1e-5)
    assert set(task.goal) <= set(range(len(task.state_names)))
    for defect in task.defects:
        FaultyActuator(env, task.defect(defect), reward=task.reward)


@pytest.mark.parametrize("defect", ["weak", "biased"])
def test_dynamics_that_are_told_of_a_damage_predict_the_damaged_task(defect):
    task = control_task("double-integrator")
    fault = task.defect(defect)
    env = FaultyActuator(task.make_env(2), fault, reward=task.reward)
    present = env.reset(range(2))
    model = FaultyDynamics(TrueDynamics(task.transition, bounds=task.bounds), fault, bounds=task.bounds)
    actions = torch.tensor([[[0.5], [-3.0]], [[-0.2], [0.9]]])
    history = History.of_present(present, action_dim=1)
    predicted = model.rollout(history, actions[:, None], generator=keyed_generator(0))[:, 0]
    made = [env.step(actions[:, step]) for step in range(2)]
    assert torch.allclose(predicted, torch.stack([step.states for step in made], dim=1), atol=1e-6)
    paid = [task.reward(present, task.bounds.clamp(actions[:, 0]), made[0].states)]
    paid += [task.reward(made[0].states, task.bounds.clamp(actions[:, 1]), made[1].states)]
    assert torch.allclose(torch.stack([step.rewards for step in made]), torch.stack(paid), atol=1e-6), "as asked for"


def test_defects_are_known_by_name_and_the_first_is_the_default():
    task = control_task("double-integrator")
    assert task.defect() == task.defect("weak") != task.defect("biased")
    with pytest.raises(ConfigError, match="wek: unknown defect of double-integrator; did you mean weak"):
        task.defect("wek")
    with pytest.raises(ConfigError, match="no defect is known"):
        replace(task, defects={}).defect()


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="pendulun: unknown control task; did you mean pendulum"):
        control_task("pendulun")


class ActionRecorder:
    """An environment of three actions that only keeps them; it ends with the second step."""

    num_envs, bounds = 1, ActionBounds.symmetric(3)

    def __init__(self):
        self.seen = []

    def reset(self, seeds):
        return torch.zeros(1, 1)

    def step(self, actions):
        self.seen.append(actions[0].tolist())
        has_ended = torch.tensor([len(self.seen) >= 2])
        return Transition(
            states=torch.zeros(1, 1),
            rewards=-self.bounds.clamp(actions).sum(dim=-1),
            terminated=has_ended,
            truncated=torch.tensor([False]),
        )


def charge(before, actions, after):
    return -actions.sum(dim=-1)


@pytest.mark.parametrize(
    ("fault", "acting"),
    [
        ({"limit": 0.25}, [0.9, -0.25, 0.1]),
        ({"gain": -0.5}, [0.9, 0.45, 0.1]),
        ({"bias": 0.3}, [0.9, -0.6, 0.1]),
        ({"gain": 2.0, "bias": -1.0, "limit": 1.5}, [0.9, -1.5, 0.1]),
    ],
)
def test_a_fault_changes_only_the_actuators_it_names(fault, acting):
    recorder = ActionRecorder()
    actions = torch.tensor([[0.9, -0.9, 0.1]])
    env = FaultyActuator(recorder, ActuatorFault(indices=(1,), **fault), reward=charge)
    env.reset([0])
    assert float(env.step(actions).rewards) == pytest.approx(-0.1), "charged as asked for"
    assert recorder.seen == [pytest.approx(acting)]
    assert actions.tolist() == [pytest.approx([0.9, -0.9, 0.1])]


def test_what_has_ended_is_charged_nothing_more():
    env = FaultyActuator(ActionRecorder(), ActuatorFault(indices=(1,), gain=0.0), reward=charge)
    env.reset([0])
    actions = torch.tensor([[0.0, 0.5, 0.0]])
    assert [float(env.step(actions).rewards) for _ in range(3)] == [-0.5, -0.5, 0.0]


@pytest.mark.parametrize("wrong", [{"indices": (0,), "limit": -1.0}, {"indices": (3,)}, {"indices": ()}])
def test_a_fault_that_can_not_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="an actuator fault of indices"):
        FaultyActuator(ActionRecorder(), ActuatorFault(**wrong), reward=charge)


def test_smooth_noise_keeps_its_spread_and_remembers():
    """20,000 numbers a step, tolerances over 5 standard errors: a false alarm is below 1e-6 with a free seed."""
    noise = SmoothNoise((20_000,), std=0.5, memory=0.8, generator=keyed_generator(0))
    steps = torch.stack([noise.next() for _ in range(6)])
    assert steps.std(dim=1).tolist() == pytest.approx([0.5] * 6, abs=0.015)
    assert float((steps[0] * steps[1]).mean() / 0.25) == pytest.approx(0.8, abs=0.04)
    assert float((steps[0] * steps[3]).mean() / 0.25) == pytest.approx(0.512, abs=0.04)
