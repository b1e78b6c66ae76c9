"""HDF5 files of users: frames and blocks of actions that belong together, and what is refused."""

import numpy as np
import pytest

from forerun.core.errors import TrajectoryError
from forerun.data.pixel_hdf5 import Hdf5Config, import_hdf5
from forerun.data.pixel_shards import read_dataset

h5py = pytest.importorskip("h5py")
LENGTHS = (7, 2, 11)


def written(path, **changes):
    total = sum(LENGTHS)
    arrays = {
        "pixels": np.arange(total, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8),
        "action": np.stack([np.arange(total), -np.arange(total)], axis=1).astype(np.float64),
        "ep_len": np.array(LENGTHS),
        "proprio": np.arange(total, dtype=np.float32),
    }
    with h5py.File(path, "w") as file:
        for name, array in (arrays | changes).items():
            if array is not None:
                file[name] = array
    return path


def test_frames_and_blocks_belong_together(tmp_path):
    config = Hdf5Config(frame_skip=3, resolution=8, state_keys=("proprio",))
    counts = import_hdf5(written(tmp_path / "user.h5"), tmp_path / "data", config)
    assert counts == {"num_episodes": 2, "num_frames": 3 + 4, "num_dropped": 1}
    episodes = read_dataset(tmp_path / "data").episodes
    assert episodes.lengths.tolist() == [3, 4]
    assert episodes.pixels.shape == (7, 8, 8, 3)
    assert episodes.pixels[:, 0, 0, 0].tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert episodes.states[:, 0].tolist() == episodes.pixels[:, 0, 0, 0].tolist()
    assert episodes.actions[0].tolist() == [0, 0, 1, -1, 2, -2]
    assert episodes.actions[3].tolist() == [9, -9, 10, -10, 11, -11]
    assert np.isnan(episodes.actions[[2, 6]]).all()
    assert episodes.state_names == ("proprio[0]",)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"action": None}, {}, r"no dataset 'action'; it has \['ep_len'"),
        ({"action": np.zeros((5, 2))}, {}, "'action' has 5 rows, 'ep_len' counts 20"),
        ({"pixels": np.zeros((20, 16, 16, 3), np.float32)}, {}, "must be uint8"),
        ({"action": np.full((20, 2), np.nan)}, {}, "only the action after"),
        ({}, {"resolution": 5}, "--resolution 5 must divide"),
        ({}, {"frame_skip": 50}, "frame_skip=50"),
    ],
)
def test_refusals(tmp_path, changes, options, message):
    with pytest.raises(TrajectoryError, match=message):
        import_hdf5(written(tmp_path / "user.h5", **changes), tmp_path / "data", Hdf5Config(**options))


def test_what_is_no_hdf5_and_a_full_folder_are_refused(tmp_path):
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(TrajectoryError, match="can't be read as HDF5"):
        import_hdf5(tmp_path / "text.h5", tmp_path / "data", Hdf5Config())
    with pytest.raises(TrajectoryError, match="is not empty"):
        import_hdf5(written(tmp_path / "user.h5"), tmp_path, Hdf5Config())
