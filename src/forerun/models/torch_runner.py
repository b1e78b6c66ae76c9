"""The plain path: the PyTorch decoder behind a slot cache, for float weights on a CPU, and the slow twin of the others.

Shape legend: M rows, C sequences of a pass, R rows of the longest of them (shorter ones are padded), G key/value heads,
D head_dim, S slots spanned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forerun.core.rows import Rows
from forerun.models.cache_bounds import check_rows
from forerun.models.decoder import Decoder
from forerun.models.slot_cache import SlotCache


class TorchRunner:
    """Runs a :class:`forerun.models.decoder.Decoder` on rows of tokens, and owns its key/value cache.

    Every pass builds its mask as a dense boolean tensor, sliding windows and draft trees included. Equal rows get equal
    logits up to rounding, which may depend on the width of the pass.

    Args:
        decoder: The model; its parameters' dtype and device are those of the runner.
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence.
        vocab_ids: Target ids of the rows of a reduced output head, ascending; ``None`` for the whole vocabulary.

    Raises:
        ConfigError: ``num_sequences`` or ``capacity`` is below 1.

    Effects:
        Allocates ``2 * num_layers * num_sequences * capacity * num_kv_heads * head_dim`` numbers.
    """

    def __init__(
        self, decoder: Decoder, *, num_sequences: int = 1, capacity: int = 2048, vocab_ids: np.ndarray | None = None
    ) -> None:
        self.config = decoder.config
        self.num_sequences = num_sequences
        self.capacity = capacity
        self.vocab_ids = vocab_ids
        self._decoder = decoder
        weight = decoder.lm_head.weight
        self._device = weight.device
        self._head = decoder.head(vocab_ids)
        self._cache = SlotCache(
            self.config, num_sequences=num_sequences, capacity=capacity, dtype=weight.dtype, device=weight.device
        )

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.config.vocab_size if self.vocab_ids is None else len(self.vocab_ids)

    @torch.inference_mode()
    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """Run rows through the model.

        Args:
            rows: The tokens; their keys and values are written to the cache.
            logit_rows: int64 indices of the rows whose logits are wanted; ``None`` for all.

        Returns:
            float32 logits ``[len(logit_rows), vocab_size]``.

        Raises:
            RequestError: A row lies outside the cache or the vocabulary; nothing has been written then.
        """
        check_rows(rows, num_sequences=self.num_sequences, capacity=self.capacity, vocab_size=self.config.vocab_size)
        sequences, row_sequence, counts = np.unique(rows.sequences, return_inverse=True, return_counts=True)
        row_place = np.arange(len(rows)) - (np.cumsum(counts) - counts)[row_sequence]
        span = int(max((rows.slots + 1).max(), rows.lengths.max(), (rows.ancestors + 1).max()))
        cell_M = (self._tensor(row_sequence), self._tensor(row_place))
        target_M = (self._tensor(rows.sequences), self._tensor(rows.slots))
        self._cache.positions[target_M] = self._tensor(rows.positions)
        held_CS = self._cache.positions[self._tensor(sequences), :span]

        shape = (len(sequences), int(counts.max()))
        token_ids_CR, positions_CR = self._tensor(np.zeros(shape, np.int64)), self._tensor(np.zeros(shape, np.int64))
        token_ids_CR[cell_M], positions_CR[cell_M] = self._tensor(rows.token_ids), self._tensor(rows.positions)
        visible_CRS = torch.zeros((*shape, span), dtype=torch.bool, device=self._device)
        visible_CRS[:, :, 0] = True  # a padding row must see something, or its softmax is not a number
        visible_CRS[cell_M] = self._visible(rows, span)
        if self.config.sliding_window is not None:
            visible_CRS &= positions_CR[:, :, None] - held_CS[:, None, :] < self.config.sliding_window
        caches = [
            _PassCache(
                keys=keys, values=values, cells=cell_M, targets=target_M, sequences=self._tensor(sequences), span=span
            )
            for keys, values in self._cache.layers()
        ]
        hidden_CRE = self._decoder.hidden_states(
            token_ids_CR, positions_BT=positions_CR, mask=visible_CRS.unsqueeze(1), caches=caches
        )
        hidden_ME = hidden_CRE[cell_M]
        if logit_rows is not None:
            hidden_ME = hidden_ME[self._tensor(logit_rows)]
        return self._head(hidden_ME).float().cpu().numpy()

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _visible(self, rows: Rows, span: int) -> Tensor:
        """Return the boolean mask ``[M, S]`` of the slots each row may see, before any window."""
        mask = np.arange(span) < rows.lengths[:, None]
        for m, count in enumerate(rows.num_ancestors):
            mask[m, rows.ancestors[m, :count]] = True
        return self._tensor(mask)

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.move_slots`.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        self._cache.move_slots(sequence, sources, targets)

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.read_states`."""
        return self._cache.read_states(sequence, start, stop, layer_ids=layer_ids)

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.write_states`."""
        self._cache.write_states(sequence, start, states)


@dataclass(frozen=True, kw_only=True, slots=True)
class _PassCache:
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
