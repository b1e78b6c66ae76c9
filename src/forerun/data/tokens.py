"""Token files: one flat little-endian array of ids per split, memory-mapped, with the starts of its documents."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int64, UInt
from numpy.typing import NDArray

from forerun.core.errors import CorpusError

TokenType = Literal["uint16", "uint32"]
TokenArray: TypeAlias = UInt[np.ndarray, " tokens"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFile:
    """What a manifest keeps about one token file.

    Attributes:
        file: Name in the folder of the manifest.
        token_type: Width of an id.
        sha256: Hash of the file.
        document_tokens: Tokens of each document in order, its end-of-text token included.
    """

    file: str
    token_type: TokenType
    sha256: str
    document_tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the file."""
        return sum(self.document_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenStream:
    """An open token file.

    Attributes:
        ids: All ids, documents one after the other; read-only, on disk until touched.
        starts: First position of each document, and the number of tokens at the end.
    """

    ids: TokenArray
    starts: Int64[np.ndarray, " starts"]

    @property
    def num_documents(self) -> int:
        """Documents of the stream."""
        return len(self.starts) - 1

    def prefix(self, num_tokens: int) -> "TokenStream":
        """Return the first ``num_tokens`` tokens; the last document may be cut."""
        inner = self.starts[self.starts < num_tokens]
        return TokenStream(ids=self.ids[:num_tokens], starts=np.append(inner, num_tokens))


class ReorderedTokens:
    """A stream as it would be with its documents in another order; nothing is copied but what is read.

    Args:
        stream: The tokens.
        order: A permutation of the document numbers.
    """

    def __init__(self, stream: TokenStream, order: NDArray[np.int64]) -> None:
        self._ids = stream.ids
        self._lengths = np.diff(stream.starts)[order]
        self._firsts = stream.starts[order]
        self._ends = np.cumsum(self._lengths)

    def span(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return positions [start, stop) of the reordered stream."""
        place = int(np.searchsorted(self._ends, start, side="right"))
        pieces: list[NDArray[np.int64]] = []
        while start < stop:
            offset = start - int(self._ends[place] - self._lengths[place])
            num_taken = min(stop - start, int(self._lengths[place]) - offset)
            first = int(self._firsts[place]) + offset
            pieces.append(np.asarray(self._ids[first : first + num_taken], np.int64))
            start, place = start + num_taken, place + 1
        return np.concatenate(pieces)


def token_type_for(vocab_size: int) -> TokenType:
    """Return the narrowest type that holds every id below ``vocab_size``."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_tokens(path: Path, documents: Iterable[Sequence[int]], *, vocab_size: int) -> TokenFile:
    """Write documents one after the other, hashing as they go.

    Args:
        path: The file; the caller moves its folder into place when all is written.
        documents: Ids of each document.
        vocab_size: Ids must lie below it.

    Returns:
        What to keep in the manifest.

    Raises:
        CorpusError: An id is outside the vocabulary.
    """
    token_type = token_type_for(vocab_size)
    digest = hashlib.sha256()
    lengths: list[int] = []
    with path.open("wb") as file:
        for ids in documents:
            values = np.asarray(ids, np.int64)
            if len(values) and not 0 <= values.min() <= values.max() < vocab_size:
                raise CorpusError(
                    f"document {len(lengths)} has token id {values.max()}: must be below the vocabulary's size "
                    f"{vocab_size}; the tokenizer does not fit"
                )
            content = values.astype(_disk_type(token_type)).tobytes()
            digest.update(content)
            file.write(content)
            lengths.append(len(values))
    return TokenFile(file=path.name, token_type=token_type, sha256=digest.hexdigest(), document_tokens=tuple(lengths))


def open_tokens(folder: Path, record: TokenFile, *, is_verified: bool = True) -> TokenStream:
    """Map a token file.

    Args:
        folder: Where the manifest is.
        record: From the manifest.
        is_verified: Whether to read the whole file once and compare its hash; its size is always compared.

    Raises:
        CorpusError: The file is missing, cut short or changed.
    """
    path = folder / record.file
    data_type = _disk_type(record.token_type)
    expected = record.num_tokens * data_type.itemsize
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        raise CorpusError(
            f"{path}: has {'no' if found is None else found} bytes, its manifest says {expected}; run "
            "'forerun pretrain prepare' again"
        )
    if is_verified:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != record.sha256:
            raise CorpusError(
                f"{path}: its SHA-256 is {digest}, its manifest says {record.sha256}: the file was changed; run "
                "'forerun pretrain prepare' again"
            )
    ids = np.memmap(path, dtype=data_type, mode="r") if expected else np.empty(0, data_type)
    return TokenStream(ids=ids, starts=np.concatenate(([0], np.cumsum(record.document_tokens))).astype(np.int64))


def _disk_type(token_type: TokenType) -> np.dtype[np.unsignedinteger]:
    return np.dtype(token_type).newbyteorder("<")
