"""The manifest of a prepared corpus: what its token files hold, where it came from, and how it is hashed."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from forerun.core.errors import CorpusError
from forerun.data.split import SPLITS, Split, check_disjoint
from forerun.data.tokens import TokenFile

MANIFEST_FILE: Final = "manifest.json"
TOKENIZER_FILE: Final = "tokenizer.json"
FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentRecord:
    """One document of a split.

    Attributes:
        name: Where it came from.
        sha256: Of its text in UTF-8.
        num_bytes: Of its text in UTF-8.
        license: As its source said; ``None`` where it said nothing.
    """

    name: str
    sha256: str
    num_bytes: int
    license: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRecord:
    """One split.

    Attributes:
        tokens: Its token file.
        documents: In the order of the file.
    """

    tokens: TokenFile
    documents: tuple[DocumentRecord, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of text."""
        return sum(document.num_bytes for document in self.documents)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A prepared corpus.

    Attributes:
        source: What ``prepare`` was given.
        config: How it was prepared.
        vocab_size: Ids lie below it.
        vocab_digest: Hash of the vocabulary, as models give it.
        end_of_text_id: Ends every document.
        splits: Train, tune and test.
        duplicates: What was left out and for which document.
    """

    source: str
    config: dict[str, Any]
    vocab_size: int
    vocab_digest: str
    end_of_text_id: int
    splits: dict[Split, SplitRecord]
    duplicates: tuple[dict[str, Any], ...]

    @property
    def data_sha256(self) -> str:
        """Hash of what training can see: vocabulary and token files. Names and licences do not count."""
        content = {split: asdict(self.splits[split].tokens) for split in SPLITS}
        return hashlib.sha256(
            json.dumps([FORMAT, self.vocab_digest, self.end_of_text_id, content], sort_keys=True).encode()
        ).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {"format": FORMAT, "data_sha256": self.data_sha256, **asdict(self)}


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        CorpusError: There is none, it is damaged or of another release, or a text is in two splits.
    """
    path = folder / MANIFEST_FILE
    advice = "name a folder that 'forerun pretrain prepare' wrote"
    if not path.is_file():
        raise CorpusError(f"{folder}: has no {MANIFEST_FILE}; {advice}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise CorpusError(
                f"{path}: is of another release (this one reads format {FORMAT}); prepare the corpus anew"
            )
        stated = content.pop("data_sha256")
        splits = {split: _split_record(content["splits"][split]) for split in SPLITS}
        manifest = Manifest(
            **(content | {"splits": splits, "duplicates": tuple(content["duplicates"])})  # every field is named
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path}: is no manifest of a corpus ({error!r}); {advice}") from error
    if stated != manifest.data_sha256:
        raise CorpusError(f"{path}: was changed (its hash is {manifest.data_sha256}, it says {stated}); {advice}")
    check_disjoint(
        {split: {document.sha256: document.name for document in splits[split].documents} for split in SPLITS}
    )
    return manifest


def _split_record(content: dict[str, Any]) -> SplitRecord:
    tokens = content["tokens"]
    return SplitRecord(
        tokens=TokenFile(**(tokens | {"document_tokens": tuple(tokens["document_tokens"])})),
        documents=tuple(DocumentRecord(**document) for document in content["documents"]),
    )
