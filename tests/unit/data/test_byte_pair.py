"""The tokenizer: any text survives it, and it knows only what it was trained on."""

import pytest

from forerun.core.errors import ConfigError
from forerun.data.byte_pair import END_OF_TEXT, train_byte_pair


def test_any_text_survives_even_what_training_never_saw():
    tokenizer = train_byte_pair(["plain words " * 50], vocab_size=270)
    for text in ("plain words", "  \t\n\r\n", "naïve 日本語 🦆 \x00", " leading"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_common_words_become_one_token_and_the_end_is_id_0():
    tokenizer = train_byte_pair(["the duck saw the duck " * 50], vocab_size=300)
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    assert len(tokenizer.encode(" duck").ids) == 1
    assert len(tokenizer.encode(" goose").ids) > 1


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ConfigError, match="vocab_size=256"):
        train_byte_pair(["x"], vocab_size=256)
