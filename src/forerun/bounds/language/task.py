"""The text of a language certificate: whole documents, in an order that their content has no part in."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, UInt8

from forerun.bounds.language.grid import BYTES_GRID, LanguageGrid
from forerun.bounds.language.verifier import MIN_DOCUMENT_BYTES, split_documents
from forerun.core.errors import CertificateError, ConfigError
from forerun.data.corpus import read_corpus

_MOST_BYTES: Final = 8_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """Documents one after the other.

    Attributes:
        text: Their bytes.
        ends: Where each ends.
    """

    text: UInt8[np.ndarray, " bytes"]
    ends: Int64[np.ndarray, " documents"]

    def __len__(self) -> int:
        return len(self.ends)

    def split(self) -> list[UInt8[np.ndarray, " bytes"]]:
        """Return each document's bytes."""
        return np.split(self.text, self.ends[:-1])

    def save(self, path: Path) -> None:
        """Write the ``.npz`` file that the stand-alone verifier reads."""
        np.savez(path, text=self.text, ends=self.ends)


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageTask:
    """One problem.

    Attributes:
        name: ``bytes``.
        grid: The prior's options.
        train: What the certificate is about.
        holdout: Documents that training never sees, for the bounds printed beside; ``None`` where there are none.
    """

    name: str
    grid: LanguageGrid
    train: Documents
    holdout: Documents | None

    def __post_init__(self) -> None:
        try:
            split_documents(self.train.text, self.train.ends)
        except ValueError as error:
            raise ConfigError(f"the text can't be certified: {error}") from error


def bytes_task(source: str, *, num_bytes: int | None = None) -> LanguageTask:
    """Return the first documents of a corpus with at least ``num_bytes`` to train on, the rest held out.

    Args:
        source: What :func:`~forerun.data.corpus.read_corpus` reads; ``default`` is this machine's standard library.
        num_bytes: Bytes to train on, at least 1; all of the corpus for no hold-out. By default 8 MB, or two thirds of
            the corpus if that is less.

    Raises:
        ConfigError: ``num_bytes`` is out of range.
        CorpusError: There is no such corpus.
    """
    texts = _ordered_texts(source)
    ends = np.cumsum([len(text) for text in texts])
    num_bytes = min(_MOST_BYTES, int(ends[-1]) * 2 // 3) if num_bytes is None else num_bytes
    if not 1 <= num_bytes <= ends[-1]:
        raise ConfigError(
            f"num_bytes={num_bytes}: must be 1 to {ends[-1]}, the bytes of {source} in documents of at least "
            f"{MIN_DOCUMENT_BYTES} bytes, each once"
        )
    num_train = int(np.searchsorted(ends, num_bytes)) + 1
    holdout = _documents(texts[num_train:]) if num_train < len(texts) else None
    return LanguageTask(name="bytes", grid=BYTES_GRID, train=_documents(texts[:num_train]), holdout=holdout)


def training_documents(source: str, manifest: Mapping[str, Any]) -> Documents:
    """Return the text that a certificate is about, taken from its corpus as when it was made.

    Args:
        source: As for :func:`bytes_task`.
        manifest: The certificate's; only its number of documents is used, and the verifier compares digests.

    Raises:
        CertificateError: The manifest does not say how many documents there were, or the corpus has fewer.
    """
    texts = _ordered_texts(source)
    claims = manifest.get("claims")
    num_train = claims.get("num_documents") if isinstance(claims, dict) else None
    if type(num_train) is not int or not 1 <= num_train <= len(texts):
        raise CertificateError(f"the certificate is about {num_train} documents, {source} has {len(texts)}")
    return _documents(texts[:num_train])


def _ordered_texts(source: str) -> list[bytes]:
    """Return the documents by a hash of their names; of those that are equal the first, and none that is tiny."""
    named = [(document.name, document.text.encode()) for document in read_corpus(source)]
    named.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
    texts = list(dict.fromkeys(text for _, text in named if len(text) >= MIN_DOCUMENT_BYTES))
    if not texts:
        raise ConfigError(f"{source}: has no document of at least {MIN_DOCUMENT_BYTES} bytes; give longer texts")
    return texts


def _documents(texts: list[bytes]) -> Documents:
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return Documents(text=np.frombuffer(b"".join(texts), np.uint8), ends=ends)
