"""Documents out of real Parquet files, and out of a dataset folder as the hub has them."""

import json
from pathlib import Path

import pytest

from forerun.core.errors import CorpusError
from forerun.data.columnar import read_hub_dataset, read_parquet
from forerun.data.corpus import read_corpus

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = [
    {"text": "The duck sees the river.", "license": "CC0", "n": 1},
    {"text": "", "license": None, "n": 2},
    {"text": "Ein Fluß, 川.", "license": None, "n": None},
]


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "docs.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


def test_rows_come_back_in_order(file):
    assert list(read_parquet(file)) == ROWS


def test_many_batches_and_row_groups_come_back(tmp_path):
    path = tmp_path / "large.parquet"
    table = pyarrow.table({"text": [f"document {number}" for number in range(5000)]})
    parquet.write_table(table, path, row_group_size=700, compression="zstd")
    assert [row["text"] for row in read_parquet(path)] == table["text"].to_pylist()


def test_a_parquet_file_is_a_corpus(file):
    documents = list(read_corpus(str(file), license_name="MIT"))
    assert [document.text for document in documents] == [ROWS[0]["text"], ROWS[2]["text"]]
    assert [document.license for document in documents] == ["CC0", "MIT"]
    assert [document.name for document in documents] == ["docs.parquet#1", "docs.parquet#3"]


def test_a_string_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.parquet"
    column = pyarrow.array([b"Flu\xdf"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), path)
    with pytest.raises(CorpusError, match="not UTF-8"):
        list(read_corpus(str(path)))


def test_another_field_and_a_field_that_is_not_there(tmp_path):
    path = tmp_path / "other.parquet"
    parquet.write_table(pyarrow.table({"body": ["a text"], "n": [3]}), path)
    assert [document.text for document in read_corpus(str(path), text_field="body")] == ["a text"]
    with pytest.raises(CorpusError, match=r"no text in the field 'text'.*body, n.*--text-field"):
        list(read_corpus(str(path)))
    with pytest.raises(CorpusError, match="no text in the field 'n'"):
        list(read_corpus(str(path), text_field="n"))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"this is a text, not Parquet", b"PAR1" + bytes(40) + b"PAR1"])
def test_what_is_no_parquet_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "broken.parquet"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="is not a Parquet file"):
        list(read_corpus(str(path)))


def test_a_file_that_was_cut_is_refused(file):
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CorpusError, match="is not a Parquet file"):
        list(read_corpus(str(file)))


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Path:
    """A dataset repository on disk, as a clone of one on the hub: a split is a file by its name."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "repository"
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "train-00000-of-00001.parquet")
    (folder / "test.jsonl").write_text(json.dumps({"text": "held out", "license": None, "n": 9}) + "\n")
    return folder


def test_a_dataset_folder_is_streamed_by_split(dataset):
    (dataset / "test.jsonl").unlink()
    assert [row["text"] for row in read_hub_dataset(str(dataset))] == [row["text"] for row in ROWS]
    assert [document.text for document in read_corpus(f"hf:{dataset}@train")] == [ROWS[0]["text"], ROWS[2]["text"]]


def test_a_split_that_is_not_there_is_refused(dataset):
    (dataset / "test.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"hf:.*@validation: can't be read"):
        list(read_corpus(f"hf:{dataset}@validation"))


def test_a_dataset_that_is_not_there_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CorpusError, match=r"hf:.*nowhere: can't be read"):
        list(read_corpus(f"hf:{tmp_path / 'nowhere'}"))
