"""Recordings of users: what is read, and that what is wrong with them is said in one sentence."""

import numpy as np
import pytest
import torch

from forerun.core.errors import TrajectoryError
from forerun.data.trajectories import Episode, Trajectories
from forerun.data.trajectory_files import load_trajectories, trajectories_from_arrays
from forerun.data.windows import WindowSource, discounted_returns


def flat(num_steps=6, **changes):
    """Two episodes of three steps, the first terminated, the second cut off."""
    arrays = {
        "observations": np.arange(2 * num_steps, dtype=np.float32).reshape(num_steps, 2),
        "actions": np.linspace(-1, 1, num_steps, dtype=np.float32)[:, None],
        "rewards": np.arange(num_steps, dtype=np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0], dtype=bool),
        "timeouts": np.array([0, 0, 0, 0, 0, 1], dtype=bool),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def test_episodes_are_cut_at_both_kinds_of_ends_and_keep_apart_which_it_was():
    found = trajectories_from_arrays(flat(), source="mine")
    assert [episode.terminated for episode in found.episodes] == [True, False]
    # Without next_observations a cut-off episode's last step has no state after it.
    assert [episode.num_steps for episode in found.episodes] == [3, 2]
    assert found.episodes[1].states.tolist() == [[6, 7], [8, 9], [10, 11]]


def test_next_observations_give_the_last_state():
    following = flat()["observations"] + 100
    found = trajectories_from_arrays(flat(next_observations=following), source="mine")
    assert [episode.num_steps for episode in found.episodes] == [3, 3]
    assert found.episodes[1].states[-1].tolist() == [110, 111]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timeouts": None}, r"no timeouts: terminals alone can't tell a cut-off episode"),
        ({"rewards": None}, r"has no rewards"),
        ({"actions": np.zeros((5, 1))}, r"as many rows each"),
        ({"rewards": np.array([0, 1, np.nan, 3, 4, 5])}, r"episode 0: rewards\[2\] is nan \(1 such"),
        ({"observations": np.full((6, 2), np.inf)}, r"episode 0: states\[0, 0\] is inf"),
        ({"timeouts": np.ones(6)}, r"step 2 is both a terminal and a timeout \(1 steps\)"),
        ({"terminals": np.zeros(5)}, r"terminals: 5 flags for 6 steps"),
        ({"next_observations": np.zeros((6, 3))}, r"next_observations \[6, 3\]"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(TrajectoryError, match=message):
        trajectories_from_arrays(flat(**changes), source="mine")


def test_names_must_be_as_many_as_numbers():
    with pytest.raises(TrajectoryError, match=r"2 numbers of a state, wanted are 3: x, y, z"):
        trajectories_from_arrays(flat(), source="mine", state_names=("x", "y", "z"))


def test_npz_of_another_program(tmp_path):
    np.savez(tmp_path / "mine.npz", **flat())
    found = load_trajectories(tmp_path / "mine.npz", state_names=("x", "y"))
    assert (found.state_names, found.action_names) == (("x", "y"), ("a0",))
    assert found.num_steps == 5


def test_hdf5_in_the_layout_of_d4rl(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        for name, value in flat().items():
            file[name] = value
    assert load_trajectories(tmp_path / "mine.hdf5").digest() == trajectories_from_arrays(flat(), source="").digest()


def test_parquet_with_a_row_a_step(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    arrays = flat()
    table = {name[:-1]: list(value) for name, value in arrays.items()}
    parquet.write_table(arrow.table(table), tmp_path / "mine.parquet")
    assert load_trajectories(tmp_path / "mine.parquet").digest() == trajectories_from_arrays(arrays, source="").digest()


def write_minari(path, episodes):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for number, (states, ends, cuts) in enumerate(episodes):
            group, count = file.create_group(f"episode_{number}"), len(ends)
            group["observations"], group["actions"] = states, np.arange(count, dtype=np.float32)[:, None]
            group["rewards"], group["terminations"], group["truncations"] = np.ones(count), ends, cuts


def test_hdf5_of_minari(tmp_path):
    """Eleven episodes: episode_10 comes after episode_9, not after episode_1."""
    none = [False, False]
    episodes = [(np.full((3, 2), number), none, none) for number in range(9)]
    episodes += [(np.full((3, 2), 9), [False, True], none), (np.full((3, 2), 10), none, [False, True])]
    write_minari(tmp_path / "main_data.hdf5", episodes)
    found = load_trajectories(tmp_path / "main_data.hdf5", state_names=("x", "y"))
    assert [episode.states[0, 0] for episode in found.episodes] == list(range(11))
    assert [episode.num_steps for episode in found.episodes] == [2] * 11
    assert [episode.terminated for episode in found.episodes] == [False] * 9 + [True, False]
    assert found.episodes[0].actions[:, 0].tolist() == [0.0, 1.0]


def test_a_minari_episode_without_its_last_observation_is_named(tmp_path):
    write_minari(tmp_path / "mine.hdf5", [(np.zeros((2, 2)), [False, False], [False, True])])
    with pytest.raises(TrajectoryError, match=r"episode_0 has observations \[2, 2\] and 2 actions: must be one"):
        load_trajectories(tmp_path / "mine.hdf5")


def lerobot(path, **more):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    states = np.arange(10, dtype=np.float32).reshape(5, 2)
    columns = {
        "observation.state": list(states),
        "action": list(states[:, :1]),
        "next.reward": [1.0, 2.0, 3.0, 4.0, 5.0],
        "episode_index": [0, 0, 0, 1, 1],
    }
    parquet.write_table(arrow.table({k: v for k, v in (columns | more).items() if v is not None}), path)


def test_parquet_of_lerobot(tmp_path):
    lerobot(tmp_path / "file-000.parquet", **{"next.success": [False, False, False, False, True]})
    first, second = load_trajectories(tmp_path / "file-000.parquet").episodes
    # The first one was cut off: where its last action led to is not recorded. The second one ended.
    assert (first.num_steps, first.terminated, second.num_steps, second.terminated) == (2, False, 2, True)
    assert first.states[:, 0].tolist() == [0, 2, 4]
    assert second.rewards.tolist() == [4, 5]


def test_a_lerobot_recording_without_rewards_is_refused(tmp_path):
    lerobot(tmp_path / "mine.parquet", **{"next.reward": None})
    with pytest.raises(TrajectoryError, match=r"has no next\.reward, only observation\.state"):
        load_trajectories(tmp_path / "mine.parquet")


@pytest.mark.parametrize("name", ["missing.npz", "mine.csv", "text.npz"])
def test_files_that_are_no_recording(tmp_path, name):
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(TrajectoryError, match=name.replace(".", r"\.")):
        load_trajectories(tmp_path / name)


def test_saving_keeps_every_number_and_a_changed_file_is_refused(tmp_path):
    found = trajectories_from_arrays(flat(), source="mine", state_names=("x", "y"))
    found.save(tmp_path / "own.npz")
    again = load_trajectories(tmp_path / "own.npz", state_names=("x", "y"), action_names=("a0",))
    assert again.digest() == found.digest()
    with pytest.raises(TrajectoryError, match=r"states are x, y, wanted are height, y"):
        load_trajectories(tmp_path / "own.npz", state_names=("height", "y"))
    with np.load(tmp_path / "own.npz") as file:
        arrays = dict(file)
    arrays["rewards"] = arrays["rewards"] + 1
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(TrajectoryError, match="not those that were written"):
        load_trajectories(tmp_path / "own.npz")


def episode(num_steps, start=0.0, *, terminated=False):
    states = start + np.arange(num_steps + 1, dtype=np.float32)[:, None]
    return Episode(
        states=states,
        actions=states[:-1] + 0.5,
        rewards=np.ones(num_steps, dtype=np.float32),
        terminated=terminated,
    )


def recorded(*episodes):
    return Trajectories(episodes=episodes, state_names=("x",), action_names=("u",), source="test")


def test_windows_never_reach_over_an_episodes_end():
    source = WindowSource(recorded(episode(3), episode(5, start=100)), history=2, horizon=4)
    window = source.take(torch.arange(len(source)))
    assert len(source) == 8
    for row in range(8):
        seen = window.states[row, :, 0].tolist() + window.following[row, :, 0].tolist()
        assert max(seen) - min(seen) < 50, "a window has states of two episodes"
    last = window.states[:, -1, 0]
    assert window.is_real.sum(dim=1).tolist() == [3, 2, 1, 4, 4, 3, 2, 1]
    assert (window.following[:, 0, 0] == last + 1).all()
    # Real steps continue one by one; beyond the end the last state stands.
    assert window.following[2, :, 0].tolist() == [3, 3, 3, 3]
    assert window.states[0, :, 0].tolist() == [0, 0]
    assert window.past_actions[0].tolist() == [[0.0]]
    assert window.past_actions[1].tolist() == [[0.5]]


def test_windows_of_a_least_length():
    source = WindowSource(recorded(episode(3), episode(5, start=100)), history=1, horizon=4, least_real=4)
    assert source.take(torch.arange(len(source))).states[:, -1, 0].tolist() == [100, 101]
    with pytest.raises(TrajectoryError, match=r"no episode has 6 steps, the longest has 5"):
        WindowSource(recorded(episode(3), episode(5)), history=1, horizon=4, least_real=6)


def test_a_cut_off_episode_has_a_future_and_a_terminated_one_has_none():
    returns = discounted_returns(recorded(episode(4), episode(4, terminated=True)), discount=0.5)
    # A reward of 1 for ever is worth 1 / (1 - 0.5) everywhere.
    assert returns[:5].tolist() == pytest.approx([2, 2, 2, 2, 2])
    assert returns[5:].tolist() == pytest.approx([1.875, 1.75, 1.5, 1, 0])


def test_splitting_and_joining_guard_against_nonsense():
    whole = recorded(episode(3), episode(4), episode(5))
    first, last = whole.split(1)
    assert [part.num_steps for part in first.episodes] == [3, 4]
    assert [part.num_steps for part in last.episodes] == [5]
    with pytest.raises(TrajectoryError, match="3 of 3 episodes held out"):
        whole.split(3)
    other = Trajectories(episodes=(episode(2),), state_names=("y",), action_names=("u",), source="other")
    with pytest.raises(TrajectoryError, match="only recordings of one task"):
        whole.joined(other)
