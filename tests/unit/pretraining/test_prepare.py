"""Preparing: hashes, splits, a tokenizer of the training text alone, all or nothing, and clear refusals."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from forerun.core.errors import ConfigError, CorpusError
from forerun.data.byte_pair import train_byte_pair
from forerun.data.tokens import TokenStream
from forerun.pretraining.manifest import read_manifest
from forerun.pretraining.prepare import PrepareConfig, prepare_corpus
from forerun.pretraining.prepared_corpus import open_corpus, openings

SMALL = {"vocab_size": 300, "min_split_tokens": 64}


def test_every_document_comes_back_from_its_tokens(prepared, texts, corpus):
    splits = corpus.manifest.splits
    assert sum(len(record.documents) for record in splits.values()) == 60
    for split in ("train", "tune"):
        stream = getattr(corpus, split)
        for number, record in enumerate(splits[split].documents):
            ids = stream.ids[stream.starts[number] : stream.starts[number + 1]].tolist()
            assert ids[-1] == corpus.manifest.end_of_text_id
            text = (texts / record.name).read_text()
            assert corpus.tokenizer.decode(ids[:-1]) == text
            assert (record.sha256, record.num_bytes) == (hashlib.sha256(text.encode()).hexdigest(), len(text))


def test_hashes_are_those_of_the_files_and_the_same_at_every_preparation(prepared, texts, tmp_path):
    manifest = read_manifest(prepared)
    for record in manifest.splits.values():
        digest = hashlib.sha256((prepared / record.tokens.file).read_bytes()).hexdigest()
        assert record.tokens.sha256 == digest
    again = prepare_corpus(str(texts), tmp_path / "again", PrepareConfig(**SMALL))
    assert again.data_sha256 == manifest.data_sha256


def test_the_tokenizer_saw_the_training_text_only(prepared, texts, corpus):
    train = [(texts / record.name).read_text() for record in corpus.manifest.splits["train"].documents]
    expected = train_byte_pair(train, vocab_size=300)
    assert json.loads((prepared / "tokenizer.json").read_text())["model"] == json.loads(expected.to_str())["model"]


def test_the_tokenizer_does_not_know_a_word_of_the_held_out_text_alone(texts, tmp_path):
    marked = tmp_path / "marked"
    shutil.copytree(texts, marked)
    for file in marked.iterdir():
        file.write_text(f"{file.read_text()} " + f"{_mark(file.name)} " * 40)
    config = PrepareConfig(vocab_size=600, min_split_tokens=64)
    splits = prepare_corpus(str(marked), tmp_path / "prepared", config).splits
    vocabulary = (tmp_path / "prepared" / "tokenizer.json").read_text()
    for split, is_known in (("train", True), ("tune", False), ("test", False)):
        marks = [_mark(record.name) for record in splits[split].documents]
        assert any(f'"\\u0120{mark}"' in vocabulary or f'"Ġ{mark}"' in vocabulary for mark in marks) == is_known


def _mark(name: str) -> str:
    """Return a word of letters for a document 00.txt to 59.txt; byte-level BPE parts letters from digits."""
    number = int(name[:2])
    return f"zq{'abcdefgh'[number // 10]}{'abcdefghij'[number % 10]}xv"


def test_near_duplicates_are_left_out_and_named(texts, tmp_path):
    twice = tmp_path / "twice"
    shutil.copytree(texts, twice)
    (twice / "zz.txt").write_text((texts / "07.txt").read_text() + "\n")
    manifest = prepare_corpus(str(twice), tmp_path / "out", PrepareConfig(**SMALL))
    assert [(item["name"], item["kept"]) for item in manifest.duplicates] == [("zz.txt", "07.txt")]
    assert sum(len(record.documents) for record in manifest.splits.values()) == 60


def test_an_end_of_text_that_is_spelled_out_is_text(texts, tmp_path):
    spelled = tmp_path / "spelled"
    shutil.copytree(texts, spelled)
    for file in spelled.iterdir():
        file.write_text(f"{file.read_text()} <|endoftext|>")
    prepare_corpus(str(spelled), tmp_path / "out", PrepareConfig(**SMALL))
    corpus = open_corpus(tmp_path / "out")
    assert (corpus.train.ids == corpus.manifest.end_of_text_id).sum() == corpus.train.num_documents


def test_an_existing_tokenizer_is_used_as_it_is(prepared, texts, tmp_path):
    manifest = prepare_corpus(str(texts), tmp_path / "out", PrepareConfig(min_split_tokens=64, tokenizer=prepared))
    assert manifest.vocab_digest == read_manifest(prepared).vocab_digest


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda content: content["added_tokens"].clear(), ConfigError, "no token for the end of a text"),
        (lambda content: content.update(normalizer={"type": "Lowercase"}), CorpusError, "tokenizer does not fit"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(prepared, texts, tmp_path, spoil, error, message):
    content = json.loads((prepared / "tokenizer.json").read_text())
    spoil(content)
    if not content["added_tokens"]:
        del content["model"]["vocab"]["<|endoftext|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    config = PrepareConfig(min_split_tokens=64, tokenizer=tmp_path / "tokenizer.json")
    with pytest.raises(error, match=message):
        prepare_corpus(str(texts), tmp_path / "out", config)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["tokenizer.json"]


def test_a_corpus_too_small_for_its_split_leaves_nothing(texts, tmp_path):
    with pytest.raises(CorpusError, match="too small for its split: train has"):
        prepare_corpus(str(texts), tmp_path / "out", PrepareConfig(vocab_size=300, min_split_tokens=100_000))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(texts, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        prepare_corpus(str(texts), tmp_path, PrepareConfig(**SMALL))
    assert (tmp_path / "mine").read_text() == "x"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content["splits"]["train"]["tokens"].update(sha256="00"), "was changed"),
        (lambda content: content.pop("splits"), "no manifest"),
        (lambda content: content.update(format=99), "another release"),
        (
            lambda content: content["splits"]["tune"]["documents"].append(content["splits"]["train"]["documents"][0]),
            "of tune is also in train",
        ),
    ],
)
def test_a_spoilt_manifest_is_refused(prepared, tmp_path, spoil, message):
    content = json.loads((prepared / "manifest.json").read_text())
    spoil(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match=message):
        read_manifest(tmp_path)


def test_a_tokenizer_exchanged_later_is_noticed(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    (tmp_path / "data" / "tokenizer.json").write_text(train_byte_pair(["other"], vocab_size=260).to_str())
    with pytest.raises(CorpusError, match="is not the tokenizer"):
        open_corpus(tmp_path / "data")


def test_held_out_openings_are_of_one_length_and_as_many_as_fit():
    lengths = [300, 20, 900, 500]
    ids = np.arange(sum(lengths), dtype=np.uint16)
    stream = TokenStream(ids=ids, starts=np.concatenate(([0], np.cumsum(lengths))))
    whole = openings(stream, 5000)
    assert np.array_equal(whole.ids, ids)
    cut = openings(stream, 1000)
    assert np.diff(cut.starts).tolist() == [300, 20, 340, 340]
    assert cut.ids[320:324].tolist() == [320, 321, 322, 323]
    assert cut.ids[-1] == 1220 + 339
    assert np.diff(openings(stream, 600).starts).tolist() == [256, 20, 256], "no opening is shorter than 256 tokens"
    assert np.diff(openings(stream, 10).starts).tolist() == [256]


def test_bytes_of_held_out_text_are_those_of_the_text(prepared, texts, corpus):
    _, num_bytes = corpus.tune_part(10**6)
    assert num_bytes == sum((texts / item.name).stat().st_size for item in corpus.manifest.splits["tune"].documents)
