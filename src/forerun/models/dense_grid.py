"""Rows of a pass as a padded grid over a slot cache, with a dense mask.

Shape legend: M rows, C sequences of a pass, R rows of the longest of them (shorter ones are padded), G key/value heads,
D head_dim, S slots spanned.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from forerun.core.rows import Rows
from forerun.models.slot_cache import SlotCache


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseGrid:
    """Rows laid out for a model that runs batches.

    Attributes:
        token_ids: ``[C, R]``.
        positions: Rotary, ``[C, R]``.
        mask: Which slots each row sees, ``[C, 1, R, S]``.
        cells: Where in the grid each row lies: two indices ``[M]``.
        targets: Sequence and slot of each row in the cache, ``[M]``.
        caches: For each layer, what writes the rows' keys and values and returns those of all spanned slots.
    """

    token_ids: Int64[Tensor, "C R"]
    positions: Int64[Tensor, "C R"]
    mask: Bool[Tensor, "C 1 R S"]
    cells: tuple[Tensor, Tensor]
    targets: tuple[Tensor, Tensor]
    caches: "list[SpannedCache]"

    @classmethod
    def of(cls, rows: Rows, cache: SlotCache, *, sliding_window: int | None = None) -> "DenseGrid":
        """Lay rows out, and write their positions to the cache.

        Args:
            rows: Checked against the cache.
            cache: Of the model that runs them.
            sliding_window: Tokens visible to a row, itself included; ``None`` for all.
        """
        device = cache.positions.device

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        sequences, row_sequence, counts = np.unique(rows.sequences, return_inverse=True, return_counts=True)
        row_place = np.arange(len(rows)) - (np.cumsum(counts) - counts)[row_sequence]
        span = int(max((rows.slots + 1).max(), rows.lengths.max(), (rows.ancestors + 1).max()))
        cells = (tensor(row_sequence), tensor(row_place))
        targets = (tensor(rows.sequences), tensor(rows.slots))
        cache.positions[targets] = tensor(rows.positions)
        held_CS = cache.positions[tensor(sequences), :span]

        shape = (len(sequences), int(counts.max()))
        token_ids_CR, positions_CR = tensor(np.zeros(shape, np.int64)), tensor(np.zeros(shape, np.int64))
        token_ids_CR[cells], positions_CR[cells] = tensor(rows.token_ids), tensor(rows.positions)
        visible_CRS = torch.zeros((*shape, span), dtype=torch.bool, device=device)
        visible_CRS[:, :, 0] = True  # a padding row must see something, or its softmax is not a number
        visible_CRS[cells] = tensor(_visible(rows, span))
        if sliding_window is not None:
            visible_CRS &= positions_CR[:, :, None] - held_CS[:, None, :] < sliding_window
        return cls(
            token_ids=token_ids_CR,
            positions=positions_CR,
            mask=visible_CRS.unsqueeze(1),
            cells=cells,
            targets=targets,
            caches=[
                SpannedCache(
                    keys=keys, values=values, cells=cells, targets=targets, sequences=tensor(sequences), span=span
                )
                for keys, values in cache.layers()
            ],
        )


def _visible(rows: Rows, span: int) -> np.ndarray:
    """Return the boolean mask ``[M, S]`` of the slots each row may see, before any window."""
    mask = np.arange(span) < rows.lengths[:, None]
    for m, count in enumerate(rows.num_ancestors):
        mask[m, rows.ancestors[m, :count]] = True
    return mask


@dataclass(frozen=True, kw_only=True, slots=True)
class SpannedCache:
    """One layer's slots as a pass sees them: writes the cells that hold rows, returns the spanned slots."""

    keys: Tensor
    values: Tensor
    cells: tuple[Tensor, Tensor]
    targets: tuple[Tensor, Tensor]
    sequences: Tensor
    span: int

    def append(self, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values ``[C, G, R, D]``; return those of every spanned slot, ``[C, G, S, D]``."""
        cell, place = self.cells
        sequence, slot = self.targets
        self.keys[sequence, :, slot] = k_BGSD[cell, :, place]
        self.values[sequence, :, slot] = v_BGSD[cell, :, place]
        return self.keys[self.sequences, :, : self.span], self.values[self.sequences, :, : self.span]
