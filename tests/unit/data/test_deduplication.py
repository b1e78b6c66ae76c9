"""Near-duplicates go, everything else stays, the first of a group is kept."""

import random

import pytest

from forerun.core.errors import ConfigError
from forerun.data.deduplication import DeduplicationConfig, remove_near_duplicates, shingles
from forerun.data.document import Document


def text_of(seed: int, num_words: int = 300) -> str:
    rng = random.Random(seed)
    return " ".join(f"word{rng.randrange(5000)}" for _ in range(num_words))


def removed(documents, **options):
    kept, duplicates = remove_near_duplicates(documents, DeduplicationConfig(**options))
    return [document.name for document in kept], {item.name: item.kept for item in duplicates}


def test_a_copy_with_a_few_words_changed_is_found_and_others_are_kept():
    changed = text_of(1).split()
    changed[150] = "other"
    documents = [Document(name=str(seed), text=text_of(seed)) for seed in range(20)]
    documents.append(Document(name="near", text=" ".join(changed)))
    kept, duplicates = removed(documents)
    assert kept == [str(seed) for seed in range(20)]
    assert duplicates == {"near": "1"}


def test_case_punctuation_and_white_space_do_not_hide_a_copy():
    disguised = text_of(0).upper().replace(" ", ",\n\n", 50)
    assert removed([Document(name="a", text=text_of(0)), Document(name="b", text=disguised)])[1] == {"b": "a"}


def test_documents_that_share_half_their_text_are_both_kept():
    half = text_of(0, 150)
    documents = [Document(name=str(seed), text=f"{half} {text_of(seed, 150)}") for seed in (1, 2)]
    assert removed(documents)[0] == ["1", "2"]
    assert removed(documents, threshold=0.2)[0] == ["1"]


def test_reported_similarity_is_exact():
    words = text_of(0).split()
    documents = [Document(name="a", text=" ".join(words)), Document(name="b", text=" ".join(words[10:]))]
    _, [duplicate] = remove_near_duplicates(documents, DeduplicationConfig())
    assert duplicate.similarity == pytest.approx(286 / 296)


def test_short_texts_are_compared_as_a_whole():
    documents = [Document(name=str(place), text=text) for place, text in enumerate(["yes", "no", " yes\n"])]
    assert removed(documents) == (["0", "1"], {"2": "0"})
    assert shingles("a b c", num_words=2) == {b"a b", b"b c"}


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.5}, {"shingle_words": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        DeduplicationConfig(**options)
