"""The plain path: the PyTorch decoder behind a slot cache, for float weights on a CPU, and the slow twin of the others.

Shape legend: M rows, C sequences of a pass, R rows of the longest of them, E hidden.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forerun.core.rows import Rows
from forerun.models.cache_bounds import check_rows
from forerun.models.decoder import Decoder
from forerun.models.dense_grid import DenseGrid
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
        grid = DenseGrid.of(rows, self._cache, sliding_window=self.config.sliding_window)

        def keep(layer: int, entering_CRE: Tensor) -> None:
            self._cache.put_features(layer, *grid.targets, entering_CRE[grid.cells])

        hidden_CRE = self._decoder.hidden_states(
            grid.token_ids,
            positions_BT=grid.positions,
            mask=grid.mask,
            caches=grid.caches,
            on_layer=keep if self._cache.keeps_features else None,
        )
        hidden_ME = hidden_CRE[grid.cells]
        if logit_rows is not None:
            hidden_ME = hidden_ME[torch.from_numpy(logit_rows).to(hidden_ME.device)]
        return self._head(hidden_ME).float().cpu().numpy()

    def keep_features(self, layer_ids: Sequence[int]) -> None:
        """As :meth:`forerun.core.features.FeatureSource.keep_features`."""
        self._cache.keep_features(layer_ids)

    def read_features(self, sequence: int, start: int, stop: int) -> np.ndarray:
        """As :meth:`forerun.core.features.FeatureSource.read_features`."""
        return self._cache.read_features(sequence, start, stop)

    def write_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        """As :meth:`forerun.core.features.FeatureSource.write_features`."""
        self._cache.write_features(sequence, start, features)

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.move_slots`.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        self._cache.move_slots(sequence, sources, targets)

    def copy_slots(self, source: int, target: int, start: int, stop: int) -> None:
        """As :meth:`forerun.core.protocols.SlotCopier.copy_slots`."""
        self._cache.copy_slots(source, target, start, stop)

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.read_states`."""
        return self._cache.read_states(sequence, start, stop, layer_ids=layer_ids)

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.write_states`."""
        self._cache.write_states(sequence, start, states)
