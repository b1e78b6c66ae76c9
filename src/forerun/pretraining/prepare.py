"""From text to token files: read, remove near-duplicates, split by document, learn a tokenizer, encode, hash."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer as Backend

from forerun.core.atomic_files import folder_in_the_making, write_json_file
from forerun.core.errors import ConfigError, CorpusError
from forerun.data.byte_pair import END_OF_TEXT, SMALLEST_VOCAB, train_byte_pair
from forerun.data.corpus import read_corpus
from forerun.data.deduplication import DeduplicationConfig, remove_near_duplicates
from forerun.data.document import Document
from forerun.data.split import SPLITS, Split, SplitConfig, split_documents
from forerun.data.tokens import write_tokens
from forerun.models.tokenizer import Tokenizer, load_tokenizer_json
from forerun.pretraining.manifest import MANIFEST_FILE, TOKENIZER_FILE, DocumentRecord, Manifest, SplitRecord

_CHUNK_DOCUMENTS: Final = 256
_END_NAMES: Final = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
"""What tokenizers call the end of a text, tried in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """How to prepare a corpus.

    Attributes:
        deduplication: What counts as a near-duplicate.
        split: How much is held out.
        vocab_size: Tokens to train the tokenizer to; not used with ``tokenizer``.
        tokenizer: A ``tokenizer.json``, or a folder with one, instead of a tokenizer of its own.
        text_field: Field of a record that holds the text.
        license_name: Licence of documents that do not say their own.
        most_bytes: Use only a sample of about so much text, drawn by a hash of the documents; ``None`` for all.
        min_split_tokens: Fewest tokens that each split must have.
    """

    deduplication: DeduplicationConfig = field(default_factory=DeduplicationConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    vocab_size: int = 1024
    tokenizer: Path | None = None
    text_field: str = "text"
    license_name: str | None = None
    most_bytes: int | None = None
    min_split_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.most_bytes is not None and self.most_bytes < 1:
            raise ConfigError(f"most_bytes={self.most_bytes}: must be at least 1; leave it out for all the text")
        if self.min_split_tokens < 2:
            raise ConfigError(f"min_split_tokens={self.min_split_tokens}: must be at least 2, to predict one from one")
        if self.vocab_size < SMALLEST_VOCAB:
            raise ConfigError(
                f"vocab_size={self.vocab_size}: must be at least {SMALLEST_VOCAB}: every byte, and the end of a text"
            )


Report = Callable[[str, int, int], None]
"""Told (stage, done, total); total is 0 where it is not known."""


def prepare_corpus(
    source: str, folder: Path, config: PrepareConfig, *, report: Report = lambda stage, done, total: None
) -> Manifest:
    """Prepare a corpus.

    Args:
        source: As :func:`forerun.data.corpus.read_corpus` takes it.
        folder: Gets ``train.bin``, ``tune.bin``, ``test.bin``, ``tokenizer.json`` and ``manifest.json``; it appears
            when all is written. Must not exist yet, or be empty.
        config: How to prepare.
        report: Progress.

    Returns:
        The manifest.

    Raises:
        ConfigError: The folder holds something already.
        CorpusError: The corpus can't be read, is too small, or the tokenizer does not fit it.
        MissingDependencyError: A package of the extra ``pretrain`` is not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out {folder}: is not empty; name a new folder, for a prepared corpus never changes")
    found = _counted(read_corpus(source, text_field=config.text_field, license_name=config.license_name), report)
    documents = _sample(list(found), config.most_bytes)
    kept, duplicates = remove_near_duplicates(
        documents, config.deduplication, report=lambda done: report("deduplicate", done, len(documents))
    )
    splits = split_documents(kept, config.split)
    report("tokenizer", 0, 1)
    backend = _tokenizer(config, splits["train"])
    report("tokenizer", 1, 1)
    end_id = _end_of_text_id(backend, config.tokenizer)
    backend.encode_special_tokens = True  # one that is spelled out in a document is text
    try:
        with folder_in_the_making(folder) as partial:
            manifest = Manifest(
                source=source,
                config=asdict(config) | {"tokenizer": None if config.tokenizer is None else str(config.tokenizer)},
                vocab_size=backend.get_vocab_size(with_added_tokens=True),
                vocab_digest=Tokenizer(backend).vocab_digest(),
                end_of_text_id=end_id,
                splits={
                    split: _write_split(partial, split, splits[split], backend, end_id, report=report)
                    for split in SPLITS
                },
                duplicates=tuple(asdict(duplicate) for duplicate in duplicates),
            )
            _check_size(manifest, config)
            backend.encode_special_tokens = False
            (partial / TOKENIZER_FILE).write_text(backend.to_str(), encoding="utf-8")
            write_json_file(partial / MANIFEST_FILE, manifest.to_json())
    except OSError as error:
        raise CorpusError(
            f"--out {folder}: cannot be written ({error.strerror}); make room, or name a folder you can write to"
        ) from error
    return manifest


def _sample(documents: list[Document], most_bytes: int | None) -> list[Document]:
    """Return documents by the order of their hashes until they have the bytes, in the order they came in."""
    if most_bytes is None:
        return documents
    num_bytes, kept = 0, set[str]()
    for document in sorted(documents, key=lambda document: document.sha256):
        if kept and num_bytes + document.num_bytes > most_bytes:
            break
        kept.add(document.sha256)
        num_bytes += document.num_bytes
    return [document for document in documents if document.sha256 in kept]


def _counted(documents: Iterator[Document], report: Report) -> Iterator[Document]:
    names: set[str] = set()
    for num_read, document in enumerate(documents, start=1):
        if document.name in names:
            raise CorpusError(f"{document.name}: is there twice; give every document a name of its own")
        names.add(document.name)
        report("read", num_read, 0)
        yield document


def _tokenizer(config: PrepareConfig, train: Sequence[Document]) -> Backend:
    if config.tokenizer is None:
        return train_byte_pair((document.text for document in train), vocab_size=config.vocab_size)
    file = config.tokenizer / TOKENIZER_FILE if config.tokenizer.is_dir() else config.tokenizer
    if not file.is_file():
        raise ConfigError(f"--tokenizer {config.tokenizer}: no such file; name a {TOKENIZER_FILE} or its folder")
    return load_tokenizer_json(file.read_text(encoding="utf-8"), str(file))


def _end_of_text_id(backend: Backend, source: Path | None) -> int:
    found = [backend.token_to_id(name) for name in _END_NAMES]
    ends = [token_id for token_id in found if token_id is not None]
    if not ends:
        raise ConfigError(
            f"--tokenizer {source}: has no token for the end of a text (looked for {', '.join(_END_NAMES)}); add one, "
            "or leave the option out to train a tokenizer"
        )
    return ends[0]


def _write_split(
    folder: Path, split: Split, documents: Sequence[Document], backend: Backend, end_id: int, *, report: Report
) -> SplitRecord:
    tokens = write_tokens(
        folder / f"{split}.bin",
        _encoded(split, documents, backend, end_id, report=report),
        vocab_size=backend.get_vocab_size(with_added_tokens=True),
    )
    records = tuple(
        DocumentRecord(name=item.name, sha256=item.sha256, num_bytes=item.num_bytes, license=item.license)
        for item in documents
    )
    return SplitRecord(tokens=tokens, documents=records)


def _encoded(
    split: Split, documents: Sequence[Document], backend: Backend, end_id: int, *, report: Report
) -> Iterator[list[int]]:
    for first in range(0, len(documents), _CHUNK_DOCUMENTS):
        chunk = documents[first : first + _CHUNK_DOCUMENTS]
        encodings = backend.encode_batch_fast([document.text for document in chunk], add_special_tokens=False)
        for number, (document, encoding) in enumerate(zip(chunk, encodings, strict=True), start=first + 1):
            if backend.decode(encoding.ids, skip_special_tokens=False) != document.text:
                raise CorpusError(
                    f"the tokenizer does not fit: {document.name!r} is not the same after encoding and decoding; use a "
                    "byte-level tokenizer that normalises nothing, or none, to train one"
                )
            report(f"encode {split}", number, len(documents))
            yield [*encoding.ids, end_id]


def _check_size(manifest: Manifest, config: PrepareConfig) -> None:
    for split, record in manifest.splits.items():
        if record.tokens.num_tokens < config.min_split_tokens:
            raise CorpusError(
                f"the corpus is too small for its split: {split} has {record.tokens.num_tokens} tokens, at least "
                f"{config.min_split_tokens} are needed; give more text"
            )
