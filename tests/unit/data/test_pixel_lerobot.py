"""LeRobot's folders of videos: frames, blocks and states that belong together, and what is refused."""

import json

import numpy as np
import pytest

from forerun.core.errors import CorpusError, TrajectoryError
from forerun.data.pixel_lerobot import LeRobotConfig, import_lerobot
from forerun.data.pixel_shards import read_dataset

av = pytest.importorskip("av")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

LENGTHS = (7, 2, 11)
CAMERA = "observation.images.top"
INFO = {
    "codebase_version": "v2.1",
    "total_episodes": len(LENGTHS),
    "chunks_size": 2,
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "features": {
        CAMERA: {"dtype": "video", "shape": [32, 32, 3]},
        "action": {"dtype": "float32", "shape": [2]},
        "observation.state": {"dtype": "float32", "shape": [1]},
    },
}


def video(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("lerobot")
    first = 0
    for number, length in enumerate(LENGTHS):
        rows = range(first, first + length)
        first += length
        names = {"episode_chunk": number // 2, "episode_index": number, "video_key": CAMERA}
        video(root / INFO["video_path"].format(**names), [10 * row for row in rows])
        table = {
            "action": [[float(row), -float(row)] for row in rows],
            "observation.state": [[float(row)] for row in rows],
        }
        path = root / INFO["data_path"].format(**names)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(table), path)
    save_info(root, INFO)
    return root


def save_info(root, info):
    (root / "meta").mkdir(exist_ok=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))


def test_frames_blocks_and_states_belong_together(written, tmp_path):
    config = LeRobotConfig(frame_skip=3, resolution=8, state_keys=("observation.state",))
    counts = import_lerobot(written, tmp_path / "data", config)
    assert counts == {"num_episodes": 2, "num_frames": 3 + 4, "num_dropped": 1}
    episodes = read_dataset(tmp_path / "data").episodes
    assert episodes.lengths.tolist() == [3, 4]
    assert episodes.pixels.shape == (7, 8, 8, 3)
    rows = [0, 3, 6, 9, 12, 15, 18]
    np.testing.assert_allclose(episodes.pixels.mean(axis=(1, 2, 3)), [10 * row for row in rows], atol=4)
    assert episodes.states[:, 0].tolist() == rows
    assert episodes.actions[3].tolist() == [9, -9, 10, -10, 11, -11]
    assert np.isnan(episodes.actions[[2, 6]]).all()
    assert episodes.state_names == ("observation.state[0]",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_key": "move"}, "no feature 'move'; it has"),
        ({"camera": "wrist"}, r"camera 'wrist': it has \['observation.images.top'\]"),
        ({"resolution": 5}, "--resolution 5 must divide"),
        ({"frame_skip": 50}, "frame_skip=50"),
    ],
)
def test_options_that_do_not_fit(written, tmp_path, options, message):
    with pytest.raises(TrajectoryError, match=message):
        import_lerobot(written, tmp_path / "data", LeRobotConfig(**options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v3.0"}, "only version 2"),
        ({"total_episodes": 4}, "is missing, though meta/info.json counts 4"),
        ({"video_path": "videos/{file_index}.mp4"}, "must name files by episode_chunk"),
        ({"video_path": "data/chunk-000/episode_000000.parquet"}, "can't be read as a video"),
        ({"video_path": "videos/chunk-000/{video_key}/episode_000001.mp4"}, "the video is cut short"),
    ],
)
def test_damaged_folders_are_refused(written, tmp_path, changes, message):
    (tmp_path / "source").mkdir()
    for part in ("data", "videos"):
        (tmp_path / "source" / part).symlink_to(written / part)
    save_info(tmp_path / "source", INFO | changes)
    with pytest.raises(TrajectoryError, match=message):
        import_lerobot(tmp_path / "source", tmp_path / "data", LeRobotConfig(frame_skip=3))


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(TrajectoryError, match="folder of a LeRobot data set"):
        import_lerobot(tmp_path, tmp_path / "data", LeRobotConfig())
    save_info(tmp_path, {"codebase_version": "v2.1"})
    with pytest.raises(TrajectoryError, match="says nothing of total_episodes"):
        import_lerobot(tmp_path, tmp_path / "data", LeRobotConfig())
    save_info(tmp_path, INFO)
    path = tmp_path / "data" / "chunk-000" / "episode_000000.parquet"
    path.parent.mkdir(parents=True)
    path.write_text("no")
    with pytest.raises(CorpusError, match="not a Parquet file"):
        import_lerobot(tmp_path, tmp_path / "out", LeRobotConfig())
