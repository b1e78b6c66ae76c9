"""Train, tune and test: whole documents, drawn by hash, never the same text twice."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from forerun.core.errors import ConfigError, CorpusError
from forerun.data.document import Document

Split = Literal["train", "tune", "test"]
"""``train`` is learned from, ``tune`` chooses settings, ``test`` is opened once, by the report."""

SPLITS: Final[tuple[Split, ...]] = get_args(Split)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """How much is held out.

    Attributes:
        tune_fraction: Share of the bytes for choosing settings, in (0, 0.5).
        test_fraction: Share of the bytes for the one last look, in (0, 0.5).
        seed: Root of the draw.
    """

    tune_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tune_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise ConfigError(f"{name}={getattr(self, name)}: must lie between 0 and 0.5; 0.1 is usual")


def split_documents(documents: Sequence[Document], config: SplitConfig) -> dict[Split, list[Document]]:
    """Deal documents out in the order of a keyed hash of their text, until a split has its share of the bytes.

    Args:
        documents: Without duplicates; their order does not matter.
        config: The shares.

    Returns:
        Documents of each split, in the order of the hash: a prefix of ``train`` is a random sample of it.

    Raises:
        CorpusError: A text is there twice, or the corpus has too few documents for three splits.
    """
    names: dict[str, str] = {}
    for document in documents:
        if (other := names.setdefault(document.sha256, document.name)) != document.name:
            raise CorpusError(
                f"the document {document.name!r} has the text of {other!r} and could land in another split; remove "
                "duplicates first"
            )
    ordered = sorted(documents, key=lambda document: _rank(document, config.seed))
    quota: dict[Split, float] = {
        "test": config.test_fraction * sum(document.num_bytes for document in documents),
        "tune": config.tune_fraction * sum(document.num_bytes for document in documents),
    }
    found: dict[Split, list[Document]] = {split: [] for split in SPLITS}
    held: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    for document in ordered:
        wanting: list[Split] = [name for name in quota if held[name] < quota[name]]
        split = wanting[0] if wanting else "train"
        found[split].append(document)
        held[split] += document.num_bytes
    if empty := [split for split in SPLITS if not found[split]]:
        raise CorpusError(
            f"the corpus has {len(documents)} documents after removal of duplicates: nothing is left for "
            f"{', '.join(empty)}; give more documents, or cut long texts into several files"
        )
    return found


def check_disjoint(documents: Mapping[Split, Mapping[str, str]]) -> None:
    """Refuse a text that is in two splits.

    Args:
        documents: For each split, the name of each document by its SHA-256.

    Raises:
        CorpusError: Some text is in two splits; the message names both documents.
    """
    seen: dict[str, tuple[Split, str]] = {}
    for split, names in documents.items():
        for digest, name in names.items():
            if digest in seen:
                other_split, other = seen[digest]
                raise CorpusError(
                    f"the document {name!r} of {split} is also in {other_split} as {other!r}; remove one, or prepare "
                    "the corpus anew"
                )
            seen[digest] = (split, name)


def _rank(document: Document, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{document.sha256}".encode()).hexdigest()
