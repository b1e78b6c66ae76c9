"""A document: the unit in which a corpus is read, cleaned of duplicates, split and shuffled."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text with its origin.

    Attributes:
        name: Where it came from: a path below the corpus, or a file with a row number. Unique in a corpus.
        text: The text.
        license: SPDX identifier or the corpus's own words; ``None`` where nobody said.
    """

    name: str
    text: str
    license: str | None = None

    @property
    def num_bytes(self) -> int:
        """Length in UTF-8."""
        return len(self.text.encode())

    @property
    def sha256(self) -> str:
        """Hash of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()
