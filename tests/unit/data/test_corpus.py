"""Reading: folders, files of records, the default corpus, and what is wrong with a bad one."""

import json

import pytest

from forerun.core.errors import CorpusError, MissingDependencyError
from forerun.data.corpus import read_corpus


def test_a_folder_gives_its_text_files_in_order_and_leaves_the_rest(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "sub" / "c.txt").write_text("thïrd", encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    found = [(item.name, item.text, item.license) for item in read_corpus(str(tmp_path), license_name="MIT")]
    assert found == [("a.md", "first", "MIT"), ("b.txt", "second", "MIT"), ("sub/c.txt", "thïrd", "MIT")]


def test_json_lines_give_a_document_a_line_with_its_licence(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"body": "one\\u2028", "license": "CC0-1.0"}\n\n{"body": "two"}\n')
    found = [(item.name, item.text, item.license) for item in read_corpus(str(file), text_field="body")]
    assert found == [("texts.jsonl#1", "one\u2028", "CC0-1.0"), ("texts.jsonl#2", "two", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{oops\n", "texts.jsonl:1: is not JSON"),
        ("[1]\n", "texts.jsonl:1: is a list"),
        (json.dumps({"body": "x"}), "no text in the field 'text'; it has body"),
        (json.dumps({"text": "\ud800"}), "half a surrogate pair"),
        ("\n", "holds no text"),
    ],
)
def test_bad_records_are_named(tmp_path, content, message):
    (tmp_path / "texts.jsonl").write_text(content)
    with pytest.raises(CorpusError, match=message):
        list(read_corpus(str(tmp_path / "texts.jsonl")))


def test_missing_binary_and_empty_corpora_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="no such file or folder"):
        list(read_corpus(str(tmp_path / "nothing")))
    with pytest.raises(CorpusError, match="holds no text"):
        list(read_corpus(str(tmp_path)))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"latin\.txt: is not UTF-8"):
        list(read_corpus(str(tmp_path)))


def test_parquet_rows_are_documents_or_the_missing_package_is_named(tmp_path):
    file = tmp_path / "texts.parquet"
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        file.write_bytes(b"PAR1")
        with pytest.raises(MissingDependencyError, match=r"forerun\[pretrain\]"):
            list(read_corpus(str(file)))
        return
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), file)
    assert [item.text for item in read_corpus(str(file))] == ["one", "two"]


def test_the_default_corpus_is_the_standard_library_without_its_tests():
    documents = {item.name.partition("/")[2]: item for item in read_corpus("default")}
    assert "json/decoder.py" in documents
    assert "class JSONDecoder" in documents["json/decoder.py"].text
    assert {item.license for item in documents.values()} == {"PSF-2.0"}
    assert not [name for name in documents if {"test", "site-packages"} & set(name.split("/"))]
