"""Token files: what was written is what is read, a changed file is noticed, a new order is a permutation."""

import numpy as np
import pytest

from forerun.core.errors import CorpusError
from forerun.data.tokens import ReorderedTokens, TokenStream, open_tokens, write_tokens

DOCUMENTS = [[5, 6, 7, 0], [1, 0], [2, 3, 0], [9, 9, 9, 9, 9, 0]]


@pytest.mark.parametrize(("vocab_size", "width"), [(300, 2), (65_536, 2), (65_537, 4)])
def test_round_trip_through_the_narrowest_type(tmp_path, vocab_size, width):
    documents = [*DOCUMENTS, [vocab_size - 1]]
    record = write_tokens(tmp_path / "train.bin", documents, vocab_size=vocab_size)
    stream = open_tokens(tmp_path, record)
    assert isinstance(stream.ids, np.memmap)
    assert not stream.ids.flags.writeable
    assert stream.ids.itemsize == width
    parts = zip(stream.starts[:-1], stream.starts[1:], strict=True)
    assert [stream.ids[start:end].tolist() for start, end in parts] == documents


def test_an_id_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="token id 300"):
        write_tokens(tmp_path / "train.bin", [[300]], vocab_size=300)


def test_a_changed_cut_or_missing_file_is_refused(tmp_path):
    path = tmp_path / "train.bin"
    record = write_tokens(path, DOCUMENTS, vocab_size=300)
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(CorpusError, match="has 28 bytes, its manifest says 30"):
        open_tokens(tmp_path, record)
    path.write_bytes(content[:-2] + b"\x01\x00")
    with pytest.raises(CorpusError, match="SHA-256"):
        open_tokens(tmp_path, record)
    path.unlink()
    with pytest.raises(CorpusError, match="has no bytes"):
        open_tokens(tmp_path, record)


def stream() -> TokenStream:
    lengths = [len(document) for document in DOCUMENTS]
    return TokenStream(ids=np.concatenate(DOCUMENTS).astype(np.uint16), starts=np.cumsum([0, *lengths]))


def test_a_reordered_stream_reads_as_the_documents_end_to_end():
    order = np.array([3, 0, 2, 1])
    whole = [token for place in order for token in DOCUMENTS[place]]
    reordered = ReorderedTokens(stream(), order)
    for start in range(len(whole)):
        for stop in range(start + 1, len(whole) + 1):
            assert reordered.span(start, stop).tolist() == whole[start:stop]


def test_a_prefix_cuts_the_last_document():
    assert stream().prefix(5).starts.tolist() == [0, 4, 5]
    assert stream().prefix(6).starts.tolist() == [0, 4, 6]
    assert stream().prefix(5).ids.tolist() == [5, 6, 7, 0, 1]
