"""The seams between subsystems, as structural types."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from forerun.core.rows import Rows


class LanguageModel(Protocol):
    """A decoder with a key/value cache of its own, driven by rows of tokens.

    Attributes:
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence.
        vocab_ids: Target ids of the columns of the logits, ascending; ``None``: column i is id i.
    """

    num_sequences: int
    capacity: int
    vocab_ids: np.ndarray | None

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        ...

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """Run rows, write their keys and values to their slots, and return logits.

        The logits are float32 ``[len(logit_rows), vocab_size]``; ``None`` asks for every row's.

        Slots at and beyond those written keep what they had: rolling back a sequence is to overwrite it.
        """
        ...

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """Copy cached keys and values of a sequence between slots (all sources are read before a target is written)."""
        ...

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """Return cached keys (with their rotary positions) and values of neighbouring slots.

        Args:
            sequence: Which sequence.
            start: First slot.
            stop: Slot after the last.
            layer_ids: Of which layers, in which order.

        Returns:
            float32 ``[stop - start, len(layer_ids), 2, num_kv_heads, head_dim]``: keys, then values.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        ...

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """Put keys and values into neighbouring slots of every layer; their positions are their slots.

        Args:
            sequence: Which sequence.
            start: First slot.
            states: float32 ``[num_slots, num_layers, 2, num_kv_heads, head_dim]``, as :meth:`read_states` gives.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        ...
