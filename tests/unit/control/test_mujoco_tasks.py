"""Tasks that MuJoCo simulates: what is special to each, and the simulator as a world model."""

import numpy as np
import pytest
import torch

from forerun.core.control import History
from forerun.core.generator import keyed_generator
from forerun.envs import control_pointmaze as pointmaze
from forerun.envs import control_push as push
from forerun.envs import control_walker2d as walker
from forerun.envs.control_tasks import control_task
from forerun.recipes.mpc.figure import Frame
from forerun.recipes.mpc.maze_film import animate_maze

pytest.importorskip("mujoco")
pytest.importorskip("imageio")  # Gymnasium's MuJoCo environments import it


@pytest.mark.parametrize("name", ["halfcheetah", "walker2d"])
def test_the_simulator_as_a_world_model_predicts_the_task(name):
    task = control_task(name)
    env = task.make_env(2)
    present = env.reset([0, 1])
    # Actions outside the box do what those at its edge do.
    actions = 3 * torch.rand(2, 6, 6, generator=keyed_generator(0)) - 1.5
    history = History.of_present(present, action_dim=6)
    predicted = task.simulator().rollout(history, actions[:, None], generator=keyed_generator(0))[:, 0]
    seen = torch.stack([env.step(actions[:, step]).states for step in range(6)], dim=1)
    change = (seen[:, -1] - present).abs().max()
    assert float((predicted - seen).abs().max()) < 1e-3 * float(change)
    env.close()


def test_a_walker_that_falls_ends_and_is_paid_nothing_more():
    task = control_task("walker2d")
    env = task.make_env(1)
    states, rewards, ends = env.reset([0]), [], []
    for _ in range(task.num_steps):
        before = states
        made = env.step(torch.full((1, 6), 0.9))
        states = made.states
        rewards.append(float(made.rewards))
        ends.append(bool(made.terminated))
        if ends[-1]:
            break
    assert ends[-1]
    assert len(ends) < task.num_steps
    assert not bool(walker.is_upright(states))
    assert float(task.reward(before, torch.zeros(1, 6), states)) == 0.0
    assert float(task.reward(before, torch.zeros(1, 6), before)) == pytest.approx(1 + float(before[0, 8]), abs=1e-5)


def test_walkers_of_the_search_get_better():
    returns = [policy.trial_return for policy in walker.linear_policies()]
    assert len(returns) > 10
    assert max(returns) > returns[0] + 150


def test_the_maze_is_walked_to_its_goal():
    pytest.importorskip("gymnasium_robotics")
    task = control_task("pointmaze")
    env = task.make_env(3)
    first = states = env.reset([3, 4, 5])
    total = torch.zeros(3)
    for step in range(task.num_steps):
        ahead = pointmaze.maze().waypoints(states[:, :2], states[:, 4:6]) - states[:, :2]
        made = env.step(1.2 * ahead - 0.5 * states[:, 2:4])
        assert made.rewards.tolist() == task.reward(states, made.states[:, :2], made.states).tolist()
        states, total = made.states, total + made.rewards
        assert made.truncated.tolist() == [step == task.num_steps - 1] * 3
    assert bool((total > 0).all())
    assert bool(task.has_succeeded(states).all())
    assert torch.equal(states[:, 4:6], first[:, 4:6])


def test_the_maze_has_strayers_and_the_data_is_a_function_of_its_seed():
    pytest.importorskip("gymnasium_robotics")
    task = control_task("pointmaze")
    states = torch.tensor([[0.0, 0.5, 0.0, 0.0, -2.5, 2.5]]).expand(200, -1)
    act, again = (task.behaviour(200, keyed_generator(0)) for _ in range(2))
    actions = act(states, 0)
    assert torch.equal(actions, again(states, 0))
    # From here the goal is to the left; the noise's mean is 0, so nearly all that go right head elsewhere.
    assert 0.05 < float((actions[:, 0] > 0.3).float().mean()) < 0.5


def test_some_of_the_mazes_data_runs_into_walls():
    """Of 2,000 behaviours beside a wall more than a tenth push at it; of walkers with noise it is a few in 100."""
    pytest.importorskip("gymnasium_robotics")
    states = torch.tensor([[-1.15, 2.5, 0.0, 0.0, 1.5, 2.5]]).expand(2000, -1)
    actions = control_task("pointmaze").behaviour(2000, keyed_generator(0))(states, 0)
    assert 0.1 < float((actions[:, 0] > 0.3).float().mean()) < 0.4


def test_a_step_in_the_maze_is_five_of_the_packages():
    pytest.importorskip("gymnasium_robotics")
    ours, packages = pointmaze.PointMazeVector(), pointmaze.PointMazeVector()
    seen, _ = ours.reset(seed=3)
    assert np.array_equal(seen, packages.reset(seed=3)[0])
    chance = np.random.default_rng(0)
    for _ in range(30):
        action = chance.uniform(-1.5, 1.5, 2)
        seen, reward, *_ = ours.step(action)
        for _ in range(5):
            theirs, their_reward, *_ = packages._env.step(action)
        assert np.allclose(seen, np.concatenate([theirs["observation"], theirs["desired_goal"]]), atol=1e-9)
        assert reward == their_reward


def test_the_expert_pushes_the_puck_to_its_goal():
    pytest.importorskip("metaworld")
    task = control_task("push")
    env = task.make_env(2)
    states = env.reset([0, 1])
    assert torch.allclose(env.reset([1, 0]), states.flip(0), atol=1e-5)
    assert not bool(task.has_succeeded(states).any())
    states = env.reset([0, 1])
    total = torch.zeros(2)
    for _ in range(task.num_steps):
        made = env.step(push.expert_actions(states))
        assert made.rewards.tolist() == task.reward(states, made.states, made.states).tolist()
        states, total = made.states, total + made.rewards
    assert bool((total > 10).all())
    assert bool(made.truncated.all())


def test_an_episode_in_the_maze_is_drawn(tmp_path):
    pytest.importorskip("gymnasium_robotics")
    pytest.importorskip("matplotlib")
    seen = np.array([[0.5, 0.5, 0, 0, -2.5, 2.5], [0.3, 0.5, 0, 0, -2.5, 2.5]])
    frames = [Frame(seen=seen[: end + 1], future=seen, others=seen[None]) for end in range(2)]
    animate_maze(frames, tmp_path / "maze.gif", title="maze")
    assert (tmp_path / "maze.gif").read_bytes().startswith(b"GIF89a")
