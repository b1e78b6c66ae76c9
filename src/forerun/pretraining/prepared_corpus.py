"""A prepared corpus, opened: its manifest, its tokenizer, and its token streams for training and tuning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from forerun.core.errors import CorpusError
from forerun.data.split import Split
from forerun.data.tokens import TokenStream, open_tokens
from forerun.models.tokenizer import Tokenizer, load_tokenizer_json
from forerun.pretraining.manifest import TOKENIZER_FILE, Manifest, read_manifest

_LEAST_OPENING: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedCorpus:
    """What training and tuning see of a corpus; ``test`` is not opened.

    Attributes:
        manifest: What it holds.
        tokenizer: Text to ids and back.
        train: To learn from.
        tune: To choose settings by.
    """

    manifest: Manifest
    tokenizer: Tokenizer
    train: TokenStream
    tune: TokenStream

    def tune_part(self, num_tokens: int) -> tuple[TokenStream, int]:
        """Return about ``num_tokens`` tokens of the tune split, as :func:`openings` takes them, and their bytes."""
        part = openings(self.tune, num_tokens)
        return part, _num_bytes(part, self.tokenizer)


def open_test(folder: Path, num_tokens: int) -> tuple[TokenStream, int]:
    """Open the test split of a prepared corpus; for a report on finished runs, and for nothing that chooses.

    Args:
        folder: The corpus.
        num_tokens: About so many are returned, as :func:`openings` takes them.

    Returns:
        Their tokens, and the bytes of their text.

    Raises:
        CorpusError: A file is missing or changed.
    """
    manifest = read_manifest(folder)
    part = openings(open_tokens(folder, manifest.splits["test"].tokens), num_tokens)
    return part, _num_bytes(part, _open_tokenizer(folder, manifest))


def openings(stream: TokenStream, num_tokens: int) -> TokenStream:
    """Return the openings of a stream's documents, all cut to the same length: many documents tell more than few.

    Args:
        stream: Held-out tokens; their order of documents is that of a hash, so the first ones are a random sample.
        num_tokens: Most tokens in all, unless that is less than one opening. Documents are cut to the largest length
            with which all of them fit, but to no less than 256 tokens; then only the first ones are taken.
    """
    lengths = np.diff(stream.starts)
    cap = _LEAST_OPENING
    if np.minimum(lengths, cap).sum() <= num_tokens:
        low, high = cap, int(lengths.max()) + 1  # all openings fit at low; find the last length at which they do
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if np.minimum(lengths, middle).sum() <= num_tokens else (low, middle)
        cap = low
    taken = np.minimum(lengths, cap)
    count = max(1, int(np.searchsorted(np.cumsum(taken), num_tokens, side="right")))
    pieces = [
        stream.ids[int(start) : int(start) + int(length)]
        for start, length in zip(stream.starts[:count], taken[:count], strict=True)
    ]
    return TokenStream(
        ids=np.concatenate(pieces), starts=np.concatenate(([0], np.cumsum(taken[:count]))).astype(np.int64)
    )


def _num_bytes(stream: TokenStream, tokenizer: Tokenizer) -> int:
    """Return the bytes of a stream's text in UTF-8; a character that a cut goes through counts as three."""
    return len(tokenizer.decode(stream.ids.tolist()).encode())


def open_corpus(folder: Path) -> PreparedCorpus:
    """Open a folder of ``forerun pretrain prepare``, hashes checked.

    Raises:
        CorpusError: A file is missing or changed, or the tokenizer is not the one that encoded the text.
    """
    manifest = read_manifest(folder)
    tokenizer = _open_tokenizer(folder, manifest)

    def opened(split: Split) -> TokenStream:
        return open_tokens(folder, manifest.splits[split].tokens)

    return PreparedCorpus(manifest=manifest, tokenizer=tokenizer, train=opened("train"), tune=opened("tune"))


def _open_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise CorpusError(f"{path}: is missing; run 'forerun pretrain prepare' again")
    backend = load_tokenizer_json(path.read_text(encoding="utf-8"), str(path))
    tokenizer = Tokenizer(backend, eos_ids=(manifest.end_of_text_id,))
    if tokenizer.vocab_digest() != manifest.vocab_digest:
        raise CorpusError(f"{path}: is not the tokenizer that encoded the text; run 'forerun pretrain prepare' again")
    return tokenizer
