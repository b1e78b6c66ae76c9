"""Labelled examples out of files, and the sampler of MNIST-1D."""

import numpy as np
import pytest
from simulated.idx_files import write_idx

from forerun.core.errors import ConfigError
from forerun.data.labelled_files import load_labelled, read_idx
from forerun.data.mnist1d import sample_mnist1d


def test_folder_of_idx_pairs_is_joined_by_name(tmp_path):
    pictures = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3)
    labels = np.array([3, 1, 2, 0, 1], dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pictures[:3], 8)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels[:3], 8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", pictures[3:], 8)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels[3:], 8)
    data, shape = load_labelled(tmp_path)
    order = [3, 4, 0, 1, 2]
    assert shape == (2, 3)
    assert data.inputs.tolist() == pictures[order].reshape(5, 6).tolist()
    assert data.labels.tolist() == labels[order].tolist()


def test_idx_of_wider_numbers_is_big_endian(tmp_path):
    write_idx(tmp_path / "x", np.array([[1, -70000]], dtype=">i4"), 12)
    assert read_idx(tmp_path / "x").tolist() == [[1, -70000]]


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x07\x01\0\0\0\x01a", b"\0\0\x08\x01\0\0\0\x09abc", b"\x1f\x8bxx"]
)
def test_broken_idx_is_one_clear_error(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ConfigError, match="get a fresh copy"):
        read_idx(tmp_path / "x")


def test_folder_without_pairs_and_missing_partner(tmp_path):
    with pytest.raises(ConfigError, match="has no file"):
        load_labelled(tmp_path)
    write_idx(tmp_path / "a-images-idx3-ubyte", np.zeros((1, 2, 2), np.uint8), 8)
    with pytest.raises(ConfigError, match="no such file beside"):
        load_labelled(tmp_path)


def test_csv_takes_the_label_column_or_the_last(tmp_path):
    (tmp_path / "x.csv").write_text("a,label,b\n1.5,2,3\n4,0,6\n")
    data, shape = load_labelled(tmp_path / "x.csv")
    assert (data.inputs.tolist(), data.labels.tolist(), shape) == ([[1.5, 3], [4, 6]], [2, 0], (2,))
    (tmp_path / "x.csv").write_text("a,b\n1.5,2\n4,0\n")
    assert load_labelled(tmp_path / "x.csv")[0].labels.tolist() == [2, 0]


@pytest.mark.parametrize("text", ["", "a,b\n", "a,b\n1,x\n", "a,b\n1,0.5\n", "a,b,c\n1,2\n", "a,b\n1,nan\n"])
def test_unusable_csv_is_one_clear_error(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.csv"):
        load_labelled(tmp_path / "x.csv")


def test_mnist1d_is_drawn_independently_and_repeats_by_seed():
    data = sample_mnist1d(4000, 3)
    assert data.inputs.shape == (4000, 40)
    counts = np.bincount(data.labels, minlength=10)
    assert counts.min() > 300
    assert counts.min() != counts.max()
    assert 0.7 < data.inputs.std() < 1.3
    again = sample_mnist1d(4000, 3)
    assert (again.inputs == data.inputs).all()
    assert (sample_mnist1d(4000, 4).inputs != data.inputs).any()
