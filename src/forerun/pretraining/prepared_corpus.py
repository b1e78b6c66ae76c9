"""A prepared corpus, opened: its manifest, its tokenizer, and its token streams for training and tuning."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forerun.core.errors import CorpusError
from forerun.data.split import Split
from forerun.data.tokens import TokenStream, open_tokens
from forerun.models.tokenizer import Tokenizer, load_tokenizer_json
from forerun.pretraining.manifest import TOKENIZER_FILE, Manifest, read_manifest


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
        num_documents = max(1, int(np.searchsorted(self.tune.starts, num_tokens, side="right")) - 1)
        records = self.manifest.splits["tune"].documents[:num_documents]
        stream = TokenStream(
            ids=self.tune.ids[: int(self.tune.starts[num_documents])], starts=self.tune.starts[: num_documents + 1]
        )
        return stream, sum(record.num_bytes for record in records)


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
