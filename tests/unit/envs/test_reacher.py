"""Reacher: states and goals without a simulator; with one, worlds that move, pictures that tell, a run to its plans."""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from forerun.core.errors import MissingDependencyError
from forerun.envs import reacher
from forerun.envs.pixel_tasks import PIXEL_TASKS
from forerun.envs.pixel_world import POLICY_NAMES
from forerun.envs.reacher import WRIST_LIMIT, ReacherTask, angles_of, states_of

TASK = ReacherTask()
needs_simulator = pytest.mark.skipif(
    find_spec("mujoco") is None or find_spec("dm_control") is None, reason="the extra worlds is not installed"
)


def state(shoulder, wrist, speeds=(0.0, 0.0)):
    return states_of(np.array([[shoulder, wrist]]), np.array([speeds]))


@pytest.fixture
def simulator():
    """Skip where MuJoCo is there but can't be imported for want of OpenGL."""
    try:
        reacher._simulator()
    except MissingDependencyError as error:
        pytest.skip(str(error))


def drawn(code, *arguments):
    """Run a program in a process of its own, as MuJoCo reads once, where it is first imported, how to draw."""
    environment = {**os.environ, "MUJOCO_GL": "egl"}
    command = [sys.executable, "-c", code, *arguments]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    if "MuJoCo can't draw" in finished.stderr:
        pytest.skip(finished.stderr.splitlines()[-1])
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_state_holds_angles_speeds_and_where_the_finger_is():
    found = state(np.pi / 2, -np.pi / 2, (1.0, -2.0))
    np.testing.assert_allclose(found[0], [0, 1, 0, -1, 1, -2, 0.12, 0.12], atol=1e-12)
    np.testing.assert_allclose(angles_of(found), [[np.pi / 2, -np.pi / 2]])
    assert len(TASK.state_names) == found.shape[1]


@pytest.mark.parametrize(
    ("other", "is_there"),
    [
        (state(3.1, 0.5), True),
        (state(-3.16, 0.54, (9, 9)), True),  # the same turned once around, but for 0.03
        (state(3.1, 0.56), False),
        (state(3.0, 0.5), False),
    ],
)
def test_the_goal_is_both_angles(other, is_there):
    assert TASK.is_reached(state(3.1, 0.5), other).tolist() == [is_there]


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_policies_stay_in_the_box_and_are_functions_of_their_generator(policy):
    first, again = (TASK.begin(policy, frozenset(), np.random.default_rng(3)) for _ in range(2))
    assert abs(angles_of(first.state[None])[0, 1]) <= WRIST_LIMIT
    for _ in range(60):
        action = first.act(first.state)
        assert np.abs(action).max() <= 1
        assert np.array_equal(action, again.act(again.state))


@pytest.mark.parametrize(("backend", "num_tries"), [("egl", 1), ("glfw", 0)])
def test_a_missing_renderer_is_named_with_its_variable(monkeypatch, backend, num_tries):
    """Nothing is drawn in a window where there is no screen: that can end the process."""
    tries = []

    def no_renderer(model, height, width):
        tries.append(model)
        raise RuntimeError("an OpenGL platform library has not been loaded")

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    context = SimpleNamespace(__module__=f"mujoco.{backend}")
    mujoco = SimpleNamespace(Renderer=no_renderer, FatalError=ValueError, GLContext=context)
    screen = SimpleNamespace(offwidth=10, offheight=10)
    model = SimpleNamespace(vis=SimpleNamespace(global_=screen))
    monkeypatch.setattr(reacher, "_simulator", lambda: (mujoco, model))
    with pytest.raises(MissingDependencyError, match=r"MUJOCO_GL.*libegl1.*libosmesa6"):
        reacher._renderer(7)
    assert len(tries) == num_tries


@needs_simulator
@pytest.mark.usefixtures("simulator")
def test_worlds_are_their_states_alone():
    """What a world does next depends on its state, not on the worlds beside it or on how it came there."""
    starts = np.concatenate([state(0.3, 0.5), state(-2.0, 1.0, (3.0, -4.0))])
    actions = np.array([[1.0, -0.5], [-1.0, 0.2]])
    both = PIXEL_TASKS["reacher"].worlds(np.zeros((2, 0)), starts)
    np.testing.assert_allclose(both.states, starts, atol=1e-12)
    both.step(actions)
    middle = both.states
    both.step(actions)
    again = TASK.worlds(np.zeros((1, 0)), middle[1:])
    again.step(actions[1:])
    np.testing.assert_allclose(again.states[0], both.states[1], atol=1e-9)
    assert both.states[0, 4] > 0.5  # a torque of 1 for 0.08 s turns the shoulder


@needs_simulator
@pytest.mark.usefixtures("simulator")
def test_the_spring_reaches_what_it_wants():
    start = TASK.begin("expert", frozenset(), np.random.default_rng(0))
    world = TASK.worlds(np.zeros((1, 0)), start.state[None])
    turned = []
    for _ in range(25):
        world.step(start.act(world.states[0])[None])
        turned.append(angles_of(world.states)[0])
    assert np.abs(turned[-1] - turned[-4]).max() < 0.3  # at rest near a target, from anywhere within a second
    assert np.abs(turned[-1] - turned[0]).max() > 0.3


FROM_COLLECTION_TO_PLANS = """
import sys
from forerun.cli.main import main

for line in sys.argv[1:]:
    if main(line.split()):
        sys.exit(1)
"""
PICTURES = """
import sys
import numpy as np
from forerun.envs.reacher import ReacherTask, states_of

states = states_of(np.array([[0.0, 0.0], [np.pi / 2, 0.0]]), np.zeros((2, 2)))
np.save(sys.argv[1], ReacherTask().worlds(np.zeros((2, 0)), states).render(32))
"""


@needs_simulator
def test_from_collection_to_plans(tmp_path):
    data, run = tmp_path / "arms", tmp_path / "run"
    output = drawn(
        FROM_COLLECTION_TO_PLANS,
        f"world collect --task reacher --out {data} --episodes 6 --env-steps 30 --resolution 32",
        f"world train --data {data} --out {run} --config smoke --steps 2 --batch-size 4 --keep-going",
        f"world plan --data {data} --model {run}/model --tasks 1 --samples 4 --elites 2 --iterations 1",
    )
    assert "recorded actions" in output


@needs_simulator
def test_pictures_show_the_arm_and_not_the_ball(tmp_path):
    drawn(PICTURES, str(tmp_path / "frames.npy"))
    frames = np.load(tmp_path / "frames.npy")
    assert frames.shape == (2, 32, 32, 3)
    assert frames.dtype == np.uint8
    # Seen from above the second arm is the first one turned by a quarter: as many pixels differ in rows as in columns.
    differs = np.abs(frames[0].astype(int) - frames[1]).max(axis=2) > 30
    assert 10 < differs.sum() < 300
    assert differs[:, 16:].any()
