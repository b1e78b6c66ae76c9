"""A byte-level BPE tokenizer of our own, trained on some text."""

from collections.abc import Iterable
from typing import Final

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from forerun.core.errors import ConfigError

END_OF_TEXT: Final = "<|endoftext|>"
"""The token after every document; id 0 of a tokenizer that was trained here."""

SMALLEST_VOCAB: Final = 257
"""256 bytes and the end of a text."""


def train_byte_pair(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learn merges from texts; any text whatsoever survives encoding and decoding.

    Args:
        texts: What to learn from.
        vocab_size: Tokens wanted, the end of a text included; a small corpus may give fewer.

    Raises:
        ConfigError: There is no room for every byte.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise ConfigError(f"vocab_size={vocab_size}: must be at least {SMALLEST_VOCAB}, one token a byte and one more")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = ByteLevelDecoder()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
