"""Two-Room: walls hold, the expert arrives, pictures show what is there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.core.errors import ConfigError
from forerun.envs.pixel_world import POLICY_NAMES
from forerun.envs.two_room import SIZE, SUCCESS_RADIUS, WALL_X, Look, TwoRoom, free_position, is_free, varied
from forerun.envs.two_room_policies import Wanderer, expert_action


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), factors=st.sets(st.sampled_from(["color", "size", "door"])))
def test_no_action_leads_into_a_wall_or_through_it(seed, factors):
    rng = np.random.default_rng(seed)
    look = varied(Look(), frozenset(factors), rng)
    world = TwoRoom([look], free_position(look, rng)[None])
    for _ in range(60):
        before = world.positions[0]
        world.step(rng.uniform(-3, 3, (1, 2)))
        after = world.positions[0]
        assert is_free(look, after)
        assert np.abs(after - before).max() <= 5.0 + 1e-9
        if (before[0] < WALL_X) != (after[0] < WALL_X):
            assert abs(after[1] - look.door_y) < look.door_half_width


@pytest.mark.parametrize("factors", [frozenset(), frozenset({"size", "door"})])
def test_the_expert_arrives_from_anywhere(factors):
    rng = np.random.default_rng(0)
    looks = [varied(Look(), factors, rng) for _ in range(60)]
    world = TwoRoom(looks, np.stack([free_position(look, rng) for look in looks]))
    goals = np.stack([free_position(look, rng) for look in looks])
    is_there = np.zeros(60, bool)
    for _ in range(100):
        world.step(np.stack([expert_action(*parts) for parts in zip(looks, world.positions, goals, strict=True)]))
        is_there |= np.hypot(*(world.positions - goals).T) <= SUCCESS_RADIUS
    assert is_there.all()


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_policies_stay_in_the_box_of_actions_and_move(policy):
    look, rng = Look(), np.random.default_rng(1)
    wanderer = Wanderer(policy, look, rng)
    actions = np.stack([wanderer.act(np.array([60.0, 60.0])) for _ in range(50)])
    assert np.abs(actions).max() <= 1
    assert np.abs(actions).mean() > 0.1


def test_the_picture_shows_the_disc_where_it_is_and_the_wall_where_it_is_not_a_door():
    look = Look()
    image = TwoRoom([look], np.array([[56.0, 168.0]])).render(32)[0]
    assert image.dtype == np.uint8
    reds = (image[..., 0] > 180) & (image[..., 1] < 100)
    rows, columns = np.nonzero(reds)
    unit = SIZE / 32
    assert abs((columns.mean() + 0.5) * unit - 56) < unit / 2
    assert abs((rows.mean() + 0.5) * unit - 168) < unit / 2
    middle = image[:, 15:17].mean(axis=(1, 2))
    assert middle[int(look.door_y / unit)] > 200
    assert middle[2] < 150
    assert middle[-2] < 150


def test_worlds_side_by_side_are_what_each_is_alone():
    rng = np.random.default_rng(2)
    looks = [varied(Look(), frozenset({"color", "size", "door"}), rng) for _ in range(4)]
    starts = np.stack([free_position(look, rng) for look in looks])
    actions = rng.uniform(-1, 1, (10, 4, 2))
    together = TwoRoom(looks, starts)
    for row in actions:
        together.step(row)
    for index in range(4):
        alone = TwoRoom([looks[index]], starts[index : index + 1])
        for row in actions:
            alone.step(row[index : index + 1])
        assert np.array_equal(alone.positions[0], together.positions[index])
        assert np.array_equal(alone.render(16)[0], together.render(16)[index])


def test_changed_rules_turn_actions():
    world = TwoRoom([Look()], np.array([[60.0, 60.0]]), action_map=np.array([[[0.0, -1.0], [1.0, 0.0]]]))
    world.step(np.array([[1.0, 0.0]]))
    assert world.positions.tolist() == [[60.0, 65.0]]


def test_refusals():
    with pytest.raises(ConfigError, match="agent_radius=40"):
        Look(agent_radius=40.0)
    with pytest.raises(ConfigError, match="door_y=1"):
        Look(door_y=1.0)
    with pytest.raises(ConfigError, match=r"\['weather'\]"):
        varied(Look(), frozenset({"weather"}), np.random.default_rng(0))
    world = TwoRoom([Look()], np.array([[60.0, 60.0]]))
    with pytest.raises(ConfigError, match="finite: False"):
        world.step(np.array([[np.nan, 0.0]]))
    with pytest.raises(ConfigError, match=r"\[2, 2\]"):
        world.step(np.zeros((2, 2)))
