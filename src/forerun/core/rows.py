"""The rows of one forward pass: which tokens, of which sequences, seeing what."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """M tokens to push through a model in one pass, grouped by sequence.

    A row writes its key and value to ``slots`` of its sequence and sees the first ``lengths`` slots, and its
    ``ancestors``. In a chain a row sees all slots up to its own; in a draft tree, the shared prefix and its branch.

    Attributes:
        sequences: int64 ``[M]``, which sequence of the cache, ascending.
        token_ids: int64 ``[M]``.
        positions: int64 ``[M]``, rotary positions.
        slots: int64 ``[M]``, where key and value go.
        lengths: int64 ``[M]``, size of the prefix each row sees (its own slot included in a chain).
        ancestors: int64 ``[M, A]``, further slots, ascending and beyond the prefix (its own slot included in a tree).
        num_ancestors: int64 ``[M]``.
    """

    sequences: np.ndarray
    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    lengths: np.ndarray
    ancestors: np.ndarray
    num_ancestors: np.ndarray

    def __len__(self) -> int:
        """Return M."""
        return len(self.token_ids)

    @classmethod
    def chains(cls, parts: "list[tuple[int, int, list[int]]]") -> "Rows":
        """Build rows that continue sequences.

        Args:
            parts: ``(sequence, start, token_ids)``: tokens at slots and positions ``start, start + 1, ...``; sequences
                ascending.
        """
        token_ids = np.array([token for _, _, tokens in parts for token in tokens], np.int64)
        counts = np.array([len(tokens) for _, _, tokens in parts], np.int64)
        starts = np.array([start for _, start, _ in parts], np.int64) - (counts.cumsum() - counts)
        sequences = np.array([sequence for sequence, _, _ in parts], np.int64).repeat(counts)
        positions = np.arange(len(token_ids)) + starts.repeat(counts)
        none = np.zeros(len(token_ids), np.int64)
        return cls(
            sequences=sequences,
            token_ids=token_ids,
            positions=positions,
            slots=positions,
            lengths=positions + 1,
            ancestors=np.zeros((len(token_ids), 1), np.int64),
            num_ancestors=none,
        )

    @classmethod
    def concatenate(cls, parts: "list[Rows]") -> "Rows":
        """Put the rows of several sequences side by side; sequences must ascend."""
        if len(parts) == 1:
            return parts[0]
        widest = max(part.ancestors.shape[1] for part in parts)
        padded = [
            part.ancestors  # the usual case; padding by nothing takes longer than the rest of this
            if part.ancestors.shape[1] == widest
            else np.pad(part.ancestors, ((0, 0), (0, widest - part.ancestors.shape[1])))
            for part in parts
        ]
        return cls(
            sequences=np.concatenate([part.sequences for part in parts]),
            token_ids=np.concatenate([part.token_ids for part in parts]),
            positions=np.concatenate([part.positions for part in parts]),
            slots=np.concatenate([part.slots for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            ancestors=np.concatenate(padded),
            num_ancestors=np.concatenate([part.num_ancestors for part in parts]),
        )

    def take(self, indices: np.ndarray) -> "Rows":
        """Return some of the rows, or all of them in another order; their sequences need not ascend then."""
        return Rows(
            sequences=self.sequences[indices],
            token_ids=self.token_ids[indices],
            positions=self.positions[indices],
            slots=self.slots[indices],
            lengths=self.lengths[indices],
            ancestors=self.ancestors[indices],
            num_ancestors=self.num_ancestors[indices],
        )
