"""A prepared corpus, opened: its manifest, its tokenizer, and its token streams for training and tuning."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forerun.core.errors import CorpusError
from forerun.data.split import Split
from forerun.data.tokens import TokenStream, open_tokens
from forerun.models.tokenizer import Tokenizer, load_tokenizer_json
from forerun.pretraining.manifest import TOKENIZER_FILE, Manifest, SplitRecord, read_manifest


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
        """Return the first whole tune documents with at most ``num_tokens`` tokens, or the first one, and their bytes.

        The order of documents is that of a hash, so this is a random sample.
        """
        return _first_documents(self.tune, self.manifest.splits["tune"], num_tokens)


def open_test(folder: Path, num_tokens: int) -> tuple[TokenStream, int]:
    """Open the test split of a prepared corpus; for a report on finished runs, and for nothing that chooses.

    Args:
        folder: The corpus.
        num_tokens: As many whole documents are returned as fit, at least one; their order is that of a hash.

    Returns:
        Their tokens, and the bytes of their text.

    Raises:
        CorpusError: A file is missing or changed.
    """
    record = read_manifest(folder).splits["test"]
    return _first_documents(open_tokens(folder, record.tokens), record, num_tokens)


def _first_documents(stream: TokenStream, record: SplitRecord, num_tokens: int) -> tuple[TokenStream, int]:
    num_documents = max(1, int(np.searchsorted(stream.starts, num_tokens, side="right")) - 1)
    part = TokenStream(ids=stream.ids[: int(stream.starts[num_documents])], starts=stream.starts[: num_documents + 1])
    return part, sum(document.num_bytes for document in record.documents[:num_documents])


def open_corpus(folder: Path) -> PreparedCorpus:
    """Open a folder of ``forerun pretrain prepare``, hashes checked.

    Raises:
        CorpusError: A file is missing or changed, or the tokenizer is not the one that encoded the text.
    """
    manifest = read_manifest(folder)
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise CorpusError(f"{path}: is missing; run 'forerun pretrain prepare' again")
    backend = load_tokenizer_json(path.read_text(encoding="utf-8"), str(path))
    tokenizer = Tokenizer(backend, eos_ids=(manifest.end_of_text_id,))
    if tokenizer.vocab_digest() != manifest.vocab_digest:
        raise CorpusError(f"{path}: is not the tokenizer that encoded the text; run 'forerun pretrain prepare' again")

    def opened(split: Split) -> TokenStream:
        return open_tokens(folder, manifest.splits[split].tokens)

    return PreparedCorpus(manifest=manifest, tokenizer=tokenizer, train=opened("train"), tune=opened("tune"))
