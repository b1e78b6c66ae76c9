"""Labelled examples out of Parquet."""

import numpy as np
import pytest

from forerun.core.errors import ConfigError, CorpusError
from forerun.data.columnar import read_parquet_columns
from forerun.data.labelled_files import load_labelled

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

SOURCE = np.random.default_rng(0)
PICTURES = SOURCE.integers(0, 255, (7, 2, 3))
LABELS = [0, 1, 2, 0, 1, 2, 2]


def write(path, **columns):
    parquet.write_table(arrow.table(columns), path)
    return path


def test_columns_of_numbers_are_features_and_label_is_found_by_name(tmp_path):
    path = write(tmp_path / "x.parquet", size=[1.5] * 7, label=LABELS, count=list(range(7)), good=[True] * 7)
    data, shape = load_labelled(path)
    assert shape == (3,)
    assert data.inputs.tolist() == [[1.5, count, 1.0] for count in range(7)]
    assert data.labels.tolist() == LABELS


@pytest.mark.parametrize("nested", ["lists", "fixed"])
def test_pictures_keep_their_shape_and_the_last_column_is_the_label(tmp_path, nested):
    kind = arrow.list_(arrow.list_(arrow.uint8()))
    if nested == "fixed":
        kind = arrow.list_(arrow.list_(arrow.uint8(), 3), 2)
    path = write(tmp_path / "x.parquet", image=arrow.array(PICTURES.tolist(), kind), target=LABELS)
    data, shape = load_labelled(path)
    assert shape == (2, 3)
    assert data.inputs.dtype == np.uint8
    assert (data.inputs == PICTURES.reshape(7, 6)).all()
    assert data.labels.tolist() == LABELS


def test_lists_and_numbers_together_are_one_row(tmp_path):
    path = write(tmp_path / "x.parquet", pair=[[1.0, 2.0]] * 7, one=[3.0] * 7, label=[float(label) for label in LABELS])
    data, shape = load_labelled(path)
    assert shape == (3,)
    assert data.inputs[0].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"name": ["a", "b"], "label": [0, 1]}, "columns name are no numbers"),
        ({"values": [[1.0], [1.0, 2.0]], "label": [0, 1]}, "columns values are no numbers"),
        ({"value": [1.0, 2.0], "label": ["a", "b"]}, "no column of labels"),
        ({"label": [0, 1]}, "no column of labels"),
        ({"value": [1.0, 2.0], "label": [0.5, 1.0]}, "whole numbers"),
        ({"value": [1.0, 2.0], "label": [None, 1]}, "whole numbers"),
        ({"value": arrow.array([], arrow.float64()), "label": arrow.array([], arrow.int64())}, "need"),
    ],
)
def test_table_that_is_no_data_is_one_clear_error(tmp_path, columns, expected):
    with pytest.raises(ConfigError, match=expected):
        load_labelled(write(tmp_path / "x.parquet", **columns))


def test_missing_numbers_are_nan_for_the_checks_that_follow(tmp_path):
    data, _ = load_labelled(write(tmp_path / "x.parquet", value=[None, 2.0], label=[0, 1]))
    assert np.isnan(data.inputs[0, 0])


def test_damaged_file_is_one_clear_error(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(CorpusError, match="not a Parquet file, or a damaged one"):
        read_parquet_columns(tmp_path / "x.parquet", extra="bounds")
