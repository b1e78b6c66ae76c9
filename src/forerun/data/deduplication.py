"""Near-duplicate removal: MinHash proposes pairs, their exact overlap decides."""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError
from forerun.data.document import Document

_WORD: Final = re.compile(r"\w+")
_MISS_WEIGHT: Final = 0.9
"""A missed pair stays in the corpus; a false candidate costs one comparison."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeduplicationConfig:
    """What counts as a near-duplicate.

    Attributes:
        threshold: Smallest Jaccard similarity of two documents' shingles, in (0, 1].
        shingle_words: Words of a shingle, lower case, punctuation left out.
        num_permutations: Length of a MinHash signature; more find pairs near the threshold more surely.
    """

    threshold: float = 0.8
    shingle_words: int = 5
    num_permutations: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold}: must be in (0, 1]; 0.8 is usual")
        if self.shingle_words < 1:
            raise ConfigError(f"shingle_words={self.shingle_words}: must be at least 1; 5 is usual")
        if self.num_permutations < 16:
            raise ConfigError(f"num_permutations={self.num_permutations}: must be at least 16; 128 is usual")


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicate:
    """A document that is left out.

    Attributes:
        name: The document.
        kept: Name of the earlier document that stands for it.
        similarity: Their Jaccard similarity, exact.
    """

    name: str
    kept: str
    similarity: float


def remove_near_duplicates(
    documents: Sequence[Document],
    config: DeduplicationConfig,
    *,
    report: Callable[[int], None] = lambda num_done: None,
) -> tuple[list[Document], list[Duplicate]]:
    r"""Keep the first of every group of near-duplicates.

    Similarity is that of the sets A and B of shingles, :math:`J = |A \cap B| / |A \cup B|`. Locality-sensitive hashing
    of MinHash signatures finds candidates, whose J is then computed: no document goes for a collision of hashes. A pair
    *at* the threshold may stay undetected; the chance falls fast above it.

    Args:
        documents: In order of preference.
        config: What counts as one.
        report: Told how many documents are done.

    Returns:
        The kept documents in their order, and those left out.

    Raises:
        MissingDependencyError: datasketch is not installed.

    Reference:
        Broder 1997, "On the resemblance and containment of documents".
    """
    datasketch = import_optional("datasketch", extra="pretrain", purpose="near-duplicate removal")
    index = datasketch.MinHashLSH(
        threshold=config.threshold, num_perm=config.num_permutations, weights=(1 - _MISS_WEIGHT, _MISS_WEIGHT)
    )
    kept: list[Document] = []
    left_out: list[Duplicate] = []
    for num_done, document in enumerate(documents, start=1):
        mine = shingles(document.text, num_words=config.shingle_words)
        signature = datasketch.MinHash(num_perm=config.num_permutations, hashfunc=zlib.crc32)
        signature.update_batch(mine)
        original = _best_match(mine, [kept[position] for position in sorted(index.query(signature))], config)
        if original is None:
            index.insert(len(kept), signature, check_duplication=False)
            kept.append(document)
        else:
            left_out.append(Duplicate(name=document.name, kept=original[0].name, similarity=original[1]))
        report(num_done)
    return kept, left_out


def _best_match(
    mine: set[bytes], candidates: Sequence[Document], config: DeduplicationConfig
) -> tuple[Document, float] | None:
    for candidate in candidates:
        theirs = shingles(candidate.text, num_words=config.shingle_words)
        similarity = len(mine & theirs) / len(mine | theirs)
        if similarity >= config.threshold:
            return candidate, similarity
    return None


def shingles(text: str, *, num_words: int) -> set[bytes]:
    """Return every run of ``num_words`` words; a shorter text is one shingle, as it stands.

    Args:
        text: Any text; case, punctuation and white space do not count, except where there are too few words.
        num_words: Words of a shingle.
    """
    words = _WORD.findall(text.lower())
    if len(words) < num_words:
        return {" ".join(text.split()).encode()}
    return {" ".join(words[start : start + num_words]).encode() for start in range(len(words) - num_words + 1)}
