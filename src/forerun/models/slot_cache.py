"""Keys and values of every layer in slots, on any device: what is written by rows, moved, read out and put in.

Shape legend: L layers, C sequences, G key/value heads, S slots, D head_dim; N layers whose inputs are kept, E hidden.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from forerun.models.cache_bounds import check_cache_size, check_slots, check_span
from forerun.models.config import DecoderConfig
from forerun.models.feature_store import feature_columns

_SLOTS_AT_ONCE: Final = 1024
"""Of a copy between two GPUs, which takes as much memory again on one of them."""


class SlotCache:
    """Cached keys and values of some sequences.

    Args:
        config: Of the model, or of this process's share of it.
        num_sequences: Sequences.
        capacity: Slots per sequence that its users may name.
        num_spare: Further slots of each sequence, for what is not part of a text.
        dtype: Of keys and values.
        device: Where they lie.

    Attributes:
        keys: Of each layer, ``[C, G, S, D]``.
        values: As ``keys``.
        positions: int64 ``[C, S]``, the rotary position that a slot was written with.

    Raises:
        ConfigError: ``num_sequences`` or ``capacity`` is below 1.

    Effects:
        Allocates ``2 * L * C * G * S * D`` numbers.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        num_sequences: int,
        capacity: int,
        num_spare: int = 0,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        check_cache_size(num_sequences=num_sequences, capacity=capacity)
        self.num_sequences, self.capacity = num_sequences, capacity
        shape = (num_sequences, config.num_kv_heads, capacity + num_spare, config.head_dim)
        self._states_LKCGSD = torch.zeros((config.num_layers, 2, *shape), dtype=dtype, device=device)
        self.keys, self.values = ([*self._states_LKCGSD[:, half]] for half in range(2))
        self.positions = torch.zeros((num_sequences, capacity + num_spare), dtype=torch.int64, device=device)
        self._config = config
        self._columns: dict[int, int] = {}
        self._features_CSNE: Tensor | None = None

    @torch.inference_mode()
    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.move_slots`."""
        check_slots(sequence, sources, targets, num_sequences=self.num_sequences, capacity=self.capacity)
        for half in (*self.keys, *self.values):
            half[sequence][:, targets] = half[sequence][:, sources]
        self.positions[sequence][targets] = self.positions[sequence][sources]

    @torch.inference_mode()
    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.read_states`."""
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        states_LKGSD = self._states_LKCGSD[:, :, sequence, :, start:stop][list(layer_ids)]
        return states_LKGSD.permute(3, 0, 1, 2, 4).float().cpu().numpy()

    @torch.inference_mode()
    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.write_states`."""
        stop = start + len(states)
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        own_LKGSD = self._states_LKCGSD[:, :, sequence, :, start:stop]
        given_LKGSD = torch.from_numpy(states).permute(1, 2, 3, 0, 4)
        assert given_LKGSD.shape == own_LKGSD.shape, "states of other layers or heads"
        own_LKGSD.copy_(given_LKGSD)
        self._set_positions(sequence, start, stop)

    @torch.inference_mode()
    def borrow_states(
        self, sequence: int, start: int, stop: int, *, lender: "SlotCache", runs: Sequence[tuple[int, int, int]]
    ) -> None:
        """Copy another cache's keys and values of neighbouring slots, from device to device.

        Args:
            sequence: Whose, in both.
            start: First slot.
            stop: Slot after the last.
            lender: Has heads of the same shape.
            runs: First layer here, first layer there, and how many follow each other in both.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        for first in range(start, stop, _SLOTS_AT_ONCE):
            slots = slice(first, min(first + _SLOTS_AT_ONCE, stop))
            for own, other, count in runs:
                given_LKGSD = lender._states_LKCGSD[other : other + count, :, sequence, :, slots]
                self._states_LKCGSD[own : own + count, :, sequence, :, slots].copy_(given_LKGSD, non_blocking=True)
        self._set_positions(sequence, start, stop)

    def borrow_slots(
        self,
        slots_NT: Tensor,
        *,
        is_lent: Tensor,
        lender: "SlotCache",
        runs: Sequence[tuple[int, int, int]],
        spare_slot: int,
    ) -> None:
        """Copy the same, of the first N sequences, in operations of fixed shape that ask nothing of the host.

        Where nothing is lent, the lender's slot 0 is read, whatever it holds or is being given, for nobody to read.

        Args:
            slots_NT: Of each sequence, in both caches.
            is_lent: ``[N, T]``, which of them are copied.
            lender: As for :meth:`borrow_states`, on the same device.
            runs: As for :meth:`borrow_states`.
            spare_slot: Takes what is not copied.
        """
        each = torch.arange(len(slots_NT), device=slots_NT.device).unsqueeze(1)
        sources, targets = torch.where(is_lent, slots_NT, 0), torch.where(is_lent, slots_NT, spare_slot)
        for own, other, count in runs:
            given_NTLKGD = lender._states_LKCGSD[other : other + count][:, :, each, :, sources]
            self._states_LKCGSD[own : own + count][:, :, each, :, targets] = given_NTLKGD
        self.positions[each, targets] = targets

    def _set_positions(self, sequence: int, start: int, stop: int) -> None:
        self.positions[sequence, start:stop] = torch.arange(start, stop, device=self.positions.device)

    @torch.inference_mode()
    def copy_slots(self, source: int, target: int, start: int, stop: int) -> None:
        """As :meth:`forerun.core.protocols.SlotCopier.copy_slots`."""
        for sequence in (source, target):
            check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        for half in (*self.keys, *self.values):
            half[target, :, start:stop] = half[source, :, start:stop]
        self.positions[target, start:stop] = self.positions[source, start:stop]
        if self._features_CSNE is not None:
            self._features_CSNE[target, start:stop] = self._features_CSNE[source, start:stop]

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values, layer by layer."""
        return list(zip(self.keys, self.values, strict=True))

    @property
    def keeps_features(self) -> bool:
        """Whether anything that enters a layer is kept."""
        return self._features_CSNE is not None

    def keep_features(self, layer_ids: Sequence[int]) -> None:
        """As :meth:`forerun.core.features.FeatureSource.keep_features`."""
        columns = feature_columns(layer_ids, num_layers=self._config.num_layers)
        if columns == self._columns:
            return
        self._columns = columns
        shape = (*self.positions.shape, len(columns), self._config.hidden_size)
        self._features_CSNE = torch.zeros(shape, dtype=self.keys[0].dtype, device=self.positions.device)

    def put_features(self, layer: int, sequences: Tensor, slots: Tensor, entering: Tensor) -> None:
        """Keep what enters a layer, ``[..., E]``, if it is one of those; asks nothing of the host."""
        column = self._columns.get(layer)
        if self._features_CSNE is not None and column is not None:
            self._features_CSNE[sequences, slots, column] = entering

    @torch.inference_mode()
    def read_features(self, sequence: int, start: int, stop: int) -> np.ndarray:
        """As :meth:`forerun.core.features.FeatureSource.read_features`."""
        return self.features(sequence, start, stop).float().cpu().numpy()

    def features(self, sequence: int, start: int, stop: int) -> Tensor:
        """Return the same where it lies, ``[stop - start, N, E]``: no copy is made.

        Raises:
            RequestError: As :meth:`read_features`.
        """
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        if self._features_CSNE is None:
            return self.keys[0].new_empty((stop - start, 0, self._config.hidden_size))
        return self._features_CSNE[sequence, start:stop]

    @torch.inference_mode()
    def write_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        """As :meth:`forerun.core.features.FeatureSource.write_features`."""
        stop = start + len(features)
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        if self._features_CSNE is not None:
            self._features_CSNE[sequence, start:stop] = torch.from_numpy(features).to(self._features_CSNE)
