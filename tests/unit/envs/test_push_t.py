"""Push-T and the Two-Room of stable-worldmodel: criteria and policies without it, worlds with it."""

from importlib.util import find_spec

import numpy as np
import pytest

from forerun.core.errors import ConfigError
from forerun.envs.pixel_tasks import PIXEL_TASKS, pixel_task
from forerun.envs.pixel_world import POLICY_NAMES
from forerun.envs.push_t import PushTTask, block_has_moved, published_state, turned
from forerun.envs.push_t_policies import Pusher


def state(agent=(100.0, 100.0), block=(300.0, 300.0), angle=0.3, speed=(0.0, 0.0)):
    return np.array([[*agent, *block, np.cos(angle), np.sin(angle), *speed]])


@pytest.mark.parametrize(
    ("other", "is_there"),
    [
        (state(), True),
        (state(agent=(114.0, 100.0), block=(300.0, 314.0)), True),  # sqrt(2) 14 < 20
        (state(agent=(115.0, 100.0), block=(300.0, 315.0)), False),
        (state(angle=0.3 + np.pi / 9 - 0.01), True),
        (state(angle=0.3 + np.pi / 9 + 0.01), False),
        (state(angle=0.3 + 2 * np.pi), True),
        (state(speed=(300.0, -300.0)), True),
    ],
)
def test_the_goal_is_disc_and_block_together_and_the_angle(other, is_there):
    task = PushTTask()
    assert task.is_reached(state(), other).tolist() == [is_there]
    assert task.is_reached(other, state()).tolist() == [is_there]


def test_angles_are_measured_the_short_way_round():
    assert turned(state(angle=0.1), state(angle=2 * np.pi - 0.1)) == pytest.approx(0.2)
    assert published_state(state(angle=-0.5)[0])[4] == pytest.approx(2 * np.pi - 0.5)


def test_a_disc_alone_does_not_move_the_block():
    assert not block_has_moved(state(), state(agent=(400.0, 10.0)))[0]
    assert block_has_moved(state(), state(block=(300.0, 321.0)))[0]
    assert block_has_moved(state(), state(angle=1.0))[0]


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_policies_stay_in_the_box_and_near_the_block(policy):
    start = PushTTask().begin(policy, frozenset(), np.random.default_rng(1))
    assert np.hypot(*(start.state[:2] - start.state[2:4])) >= 130
    now, gaps = start.state.copy(), []
    for _ in range(200):
        action = start.act(now)
        assert np.abs(action).max() <= 1
        now[:2] += 30 * action
        gaps.append(np.hypot(*(now[:2] - now[2:4])))
    assert np.median(gaps) < 140
    assert min(gaps) < 60


def test_strokes_are_functions_of_their_generator():
    first, second = (Pusher("noisy", np.random.default_rng(3)) for _ in range(2))
    for _ in range(5):
        assert np.array_equal(first.act(state()[0]), second.act(state()[0]))


def test_unknown_tasks_and_factors_are_refused():
    with pytest.raises(ConfigError, match="known are two-room, push-t"):
        pixel_task("push-l")
    with pytest.raises(ConfigError, match="'push-t' are none"):
        PushTTask().begin("expert", frozenset({"color"}), np.random.default_rng(0))


@pytest.mark.skipif(find_spec("stable_worldmodel") is None, reason="the extra stable-worlds is not installed")
@pytest.mark.parametrize("name", ["push-t", "stable-two-room"])
def test_worlds_begin_where_they_are_put_and_move(name):
    task = PIXEL_TASKS[name]
    starts = [task.begin("expert", frozenset(), np.random.default_rng(seed)) for seed in range(2)]
    states = np.stack([start.state for start in starts])
    worlds = task.worlds(np.zeros((2, 0)), states)
    np.testing.assert_allclose(worlds.states, states, atol=1e-3)
    frames = worlds.render(32)
    assert frames.shape == (2, 32, 32, 3)
    assert frames.dtype == np.uint8
    worlds.step(np.array([[1.0, 0.0], [0.0, 0.0]]))
    moved = worlds.states - states
    assert moved[0, 0] > 2
    np.testing.assert_allclose(moved[1], 0, atol=1e-3)
    assert not np.array_equal(worlds.render(32)[0], frames[0])
    assert not task.is_reached(states[:1], states[1:])[0]
