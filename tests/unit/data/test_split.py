"""Splits: by document, by share of bytes, stable, and never one text in two."""

import pytest

from forerun.core.errors import ConfigError, CorpusError
from forerun.data.document import Document
from forerun.data.split import SPLITS, SplitConfig, check_disjoint, split_documents

DOCUMENTS = [Document(name=str(number), text=f"document {number} " * (1 + number % 7)) for number in range(300)]


def names(splits):
    return {split: [document.name for document in documents] for split, documents in splits.items()}


def test_every_document_is_in_exactly_one_split():
    splits = names(split_documents(DOCUMENTS, SplitConfig()))
    assert set(splits) == set(SPLITS)
    assert sorted(name for found in splits.values() for name in found) == sorted(item.name for item in DOCUMENTS)


def test_held_out_splits_have_their_share_of_the_bytes():
    splits = split_documents(DOCUMENTS, SplitConfig(tune_fraction=0.2, test_fraction=0.05))
    total = sum(document.num_bytes for document in DOCUMENTS)
    share = {split: sum(document.num_bytes for document in found) / total for split, found in splits.items()}
    assert share["tune"] == pytest.approx(0.2, abs=0.01)
    assert share["test"] == pytest.approx(0.05, abs=0.01)


def test_the_order_of_the_corpus_does_not_count_but_the_seed_does():
    once = names(split_documents(DOCUMENTS, SplitConfig()))
    assert names(split_documents(DOCUMENTS[::-1], SplitConfig())) == once
    assert names(split_documents(DOCUMENTS, SplitConfig(seed=1))) != once


def test_one_text_under_two_names_is_refused():
    with pytest.raises(CorpusError, match="'copy' has the text of '0'"):
        split_documents([*DOCUMENTS, Document(name="copy", text=DOCUMENTS[0].text)], SplitConfig())


def test_a_text_in_two_splits_is_named():
    with pytest.raises(CorpusError, match="'b' of tune is also in train as 'a'"):
        check_disjoint({"train": {"00": "a"}, "tune": {"00": "b"}, "test": {}})


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_documents_are_refused(count):
    with pytest.raises(CorpusError, match=r"nothing is left for"):
        split_documents(DOCUMENTS[:count], SplitConfig())


def test_shares_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"tune_fraction=0\.7"):
        SplitConfig(tune_fraction=0.7)
