"""Episodes of frames: what is refused, windows and splits, shards that are checked and go on."""

import json
from dataclasses import replace

import numpy as np
import pytest
from simulated.worlds import TINY_COLLECT

from forerun.core.errors import ConfigError, TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes, joined_episodes
from forerun.data.pixel_shards import read_dataset, shard_path
from forerun.envs.two_room import Look
from forerun.envs.two_room_task import look_of
from forerun.worldmodels.collection import CollectConfig, collect, record_episodes, recorded_with


def episodes(lengths=(3, 5, 2), **changes):
    total = sum(lengths)
    actions = np.arange(total * 2, dtype=np.float32).reshape(total, 2)
    actions[np.cumsum(lengths) - 1] = np.nan
    parts = {
        "pixels": np.arange(total, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8),
        "actions": actions,
        "states": np.arange(total, dtype=np.float32)[:, None],
        "lengths": np.array(lengths),
        "context": np.arange(len(lengths), dtype=np.float64)[:, None],
        "state_names": ("x",),
        "context_names": ("index",),
        "source": "test",
    }
    return PixelEpisodes(**(parts | changes))


def test_windows_stay_inside_episodes():
    assert episodes().window_rows(3).tolist() == [0, 3, 4, 5]
    with pytest.raises(TrajectoryError, match="longest episode has 5 frames, a window needs 6"):
        episodes().window_rows(6)


def test_actions_taken_leave_out_the_missing_ones():
    taken = episodes().taken_actions
    assert len(taken) == 7
    assert np.isfinite(taken).all()


def test_a_split_shares_no_episode_and_repeats_itself():
    source = episodes((2,) * 20)
    training, held_out = source.split(0.25, seed=3)
    assert len(held_out.lengths) == 5
    assert sorted([*training.context[:, 0], *held_out.context[:, 0]]) == list(range(20))
    assert set(training.states[:, 0]).isdisjoint(held_out.states[:, 0])
    assert np.array_equal(source.split(0.25, seed=3)[1].pixels, held_out.pixels)
    assert not np.array_equal(source.split(0.25, seed=4)[1].pixels, held_out.pixels)


def broken(name, place, value):
    array = np.array(getattr(episodes(), name), copy=True)
    array[place] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": np.zeros((10, 8, 8, 3), np.float32)}, "must be uint8"),
        ({"pixels": np.zeros((10, 8, 8), np.uint8)}, "must be uint8"),
        ({"pixels": np.zeros((9, 8, 8, 3), np.uint8)}, r"pixels of shape \[9, 8, 8, 3\]"),
        ({"lengths": np.array([9, 1])} | {"context": np.zeros((2, 1))}, "episode 1 has 1 frame"),
        (broken("actions", 4, np.nan), "after frame 1 of episode 1"),
        (broken("states", 4, np.inf), r"states\[4\]"),
        ({"state_names": ("x", "y")}, r"states of shape \[10, 1\]"),
    ],
)
def test_what_can_not_be_learned_from_is_refused(changes, message):
    with pytest.raises(TrajectoryError, match=message):
        episodes(**changes)


def test_recordings_of_other_sizes_are_not_joined():
    other = episodes(pixels=np.zeros((10, 16, 16, 3), np.uint8))
    with pytest.raises(TrajectoryError, match=r"\(16, 16\)"):
        joined_episodes([episodes(), other])
    assert joined_episodes([episodes(), episodes()]).num_episodes == 6


def test_a_collection_goes_on_where_it_was_cut_and_is_checked(tmp_path):
    config = replace(TINY_COLLECT, factors=("color",))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert collect(whole, config) == {"num_episodes": 24, "num_frames": 24 * 9, "num_kept": 0}
    collect(cut, config)
    (cut / "manifest.json").unlink()
    shard_path(cut, 1).unlink()
    assert collect(cut, config)["num_kept"] == 14
    first, second = read_dataset(whole), read_dataset(cut)
    assert first.digest == second.digest
    assert np.array_equal(first.episodes.pixels, second.episodes.pixels)
    assert recorded_with(first.recipe) == config
    with pytest.raises(TrajectoryError, match="other options"):
        collect(whole, replace(config, seed=1))
    damaged = bytearray(shard_path(cut, 0).read_bytes())
    damaged[len(damaged) // 2] ^= 255
    shard_path(cut, 0).write_bytes(bytes(damaged))
    with pytest.raises(TrajectoryError, match=r"shard-00000\.npz"):
        read_dataset(cut)


def test_shards_of_two_collections_are_not_mixed(tmp_path):
    config = replace(TINY_COLLECT, num_episodes=20)
    collect(tmp_path / "a", config)
    collect(tmp_path / "b", replace(config, seed=5))
    shard_path(tmp_path / "a", 1).write_bytes(shard_path(tmp_path / "b", 1).read_bytes())
    with pytest.raises(TrajectoryError, match="another collection"):
        read_dataset(tmp_path / "a")


def test_an_unfinished_folder_is_no_dataset(tmp_path):
    with pytest.raises(TrajectoryError, match="world collect"):
        read_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(TrajectoryError, match="no manifest of pixel episodes"):
        read_dataset(tmp_path)


def test_an_episode_is_a_function_of_seed_and_number():
    three = record_episodes(TINY_COLLECT, range(3))
    [last] = [record_episodes(TINY_COLLECT, range(2, 3))]
    assert np.array_equal(three.take([2]).pixels, last.pixels)
    assert np.array_equal(three.take([2]).actions, last.actions, equal_nan=True)
    assert look_of(three.context[0]) == Look()


def test_recorded_actions_lead_from_state_to_state():
    recorded = record_episodes(replace(TINY_COLLECT, env_steps=20), range(6))
    inside = (np.abs(recorded.states[:-1, 0] - 112) > 45) & (np.abs(recorded.states[:-1] - 112).max(axis=1) < 70)
    is_last = np.isin(np.arange(len(recorded.states) - 1), recorded.last_rows)
    rows = np.flatnonzero(inside & ~is_last)
    moved = recorded.actions[rows].reshape(len(rows), 5, 2).sum(axis=1) * 5.0
    assert len(rows) > 3
    np.testing.assert_allclose(recorded.states[rows + 1], recorded.states[rows] + moved, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_episodes": 0}, "num_episodes=0"),
        ({"env_steps": 12}, "env_steps=12"),
        ({"resolution": 4}, "resolution=4"),
        ({"expert_share": 0.8, "random_share": 0.3}, "shares"),
        ({"factors": ("wind",)}, "wind"),
    ],
)
def test_refusals_of_a_collection(options, message):
    with pytest.raises(ConfigError, match=message):
        CollectConfig(**options)
