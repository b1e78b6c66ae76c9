"""Runs an EAGLE-3 head on rows of tokens, and owns its keys, values and hidden states.

Shape legend: M rows, C sequences of a pass, R rows of the longest of them, E hidden of the head.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from forerun.core.rows import Rows
from forerun.models.cache_bounds import check_rows, check_span
from forerun.models.dense_grid import DenseGrid
from forerun.models.eagle3 import Eagle3Config, Eagle3Head, head_shapes
from forerun.models.slot_cache import SlotCache


class Eagle3Runner:
    """A head as a :class:`forerun.core.features.FeatureReader`.

    A row reads its token and the hidden state of the row before it: of the slot before, or in a draft tree of the last
    of its ancestors. Where the target has given one it is that, projected; elsewhere what the head computed there in an
    earlier pass.

    Args:
        head: Its parameters' dtype and device are those of the runner.
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence.
        vocab_ids: Target ids of what it can propose, ascending; ``None``: all of the target's.

    Raises:
        ConfigError: ``num_sequences`` or ``capacity`` is below 1.

    Effects:
        Allocates ``num_sequences * capacity * (2 * num_kv_heads * head_dim + hidden_size)`` numbers.
    """

    def __init__(
        self, head: Eagle3Head, *, num_sequences: int = 1, capacity: int = 2048, vocab_ids: np.ndarray | None = None
    ) -> None:
        layer, weight = head.config.layer, head.norm.weight
        self.num_sequences, self.capacity, self.vocab_ids = num_sequences, capacity, vocab_ids
        self._head = head
        self._cache = SlotCache(
            layer, num_sequences=num_sequences, capacity=capacity, dtype=weight.dtype, device=weight.device
        )
        self._hidden = torch.zeros(
            (num_sequences, capacity, layer.hidden_size), dtype=weight.dtype, device=weight.device
        )
        self._num_given = np.zeros(num_sequences, np.int64)
        """Of each sequence, the slots from the first on that hold the target's hidden states."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._head.config.draft_vocab_size

    @torch.inference_mode()
    def take_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        """As :meth:`forerun.core.features.FeatureReader.take_features`."""
        stop = start + len(features)
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        given = torch.from_numpy(features).to(self._hidden)
        self._hidden[sequence, start:stop] = self._head.fuse(given)
        self._num_given[sequence] = stop

    @torch.inference_mode()
    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """Run rows through the head; see :class:`forerun.core.features.FeatureReader` for what they read.

        Args:
            rows: The tokens; their keys, values and hidden states are written to the cache.
            logit_rows: int64 indices of the rows whose logits are wanted; ``None`` for all.

        Returns:
            float32 logits ``[len(logit_rows), vocab_size]``.

        Raises:
            RequestError: A row lies outside the cache or the vocabulary; nothing has been written then.
        """
        config = self._head.config.layer
        check_rows(rows, num_sequences=self.num_sequences, capacity=self.capacity, vocab_size=config.vocab_size)
        grid = DenseGrid.of(rows, self._cache)
        is_first = rows.slots == 0
        # The first token has no state before it to be read with: other rows don't see it.
        sequence_M, place_M = grid.cells
        grid.mask[sequence_M, 0, place_M, 0] = self._tensor(is_first)

        before_M = self._tensor(slots_before(rows))
        hidden_ME = self._hidden[self._tensor(rows.sequences), before_M]
        hidden_ME[self._tensor(is_first)] = 0
        hidden_CRE = torch.zeros((*grid.token_ids.shape, config.hidden_size)).to(self._hidden)
        hidden_CRE[grid.cells] = hidden_ME
        out_CRE, normed_CRE = self._head(
            grid.token_ids, hidden_CRE, positions_BT=grid.positions, mask=grid.mask, cache=grid.caches[0]
        )
        own = np.flatnonzero(rows.slots >= self._num_given[rows.sequences])
        self._hidden[self._tensor(rows.sequences[own]), self._tensor(rows.slots[own])] = out_CRE[grid.cells][
            self._tensor(own)
        ]
        normed_ME = normed_CRE[grid.cells]
        if logit_rows is not None:
            normed_ME = normed_ME[self._tensor(logit_rows)]
        return self._head.lm_head(normed_ME).float().cpu().numpy()

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._hidden.device)

    @torch.inference_mode()
    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.move_slots`; hidden states move along.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        self._cache.move_slots(sequence, sources, targets)
        self._hidden[sequence][targets] = self._hidden[sequence][sources]

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.read_states`."""
        return self._cache.read_states(sequence, start, stop, layer_ids=layer_ids)

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.write_states`."""
        self._cache.write_states(sequence, start, states)


def slots_before(rows: Rows) -> np.ndarray:
    """Return the slot of the row before each row, int64 ``[M]``; 0 for that of a first token."""
    index = np.arange(len(rows))
    in_branch = rows.ancestors[index, np.maximum(rows.num_ancestors - 2, 0)]
    before = np.where(rows.num_ancestors > 1, in_branch, rows.lengths - 1)
    return np.where(rows.num_ancestors == 0, np.maximum(rows.slots - 1, 0), np.maximum(before, 0))


def fill_head(
    config: Eagle3Config,
    tensor: Callable[[str], np.ndarray],
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    build_layer: Callable[[Tensor], nn.Module] | None = None,
) -> Eagle3Head:
    """Build a head and fill it.

    Args:
        config: Its shape.
        tensor: Gives a weight by its name as float32.
        dtype: Type of the parameters.
        device: Where they go.
        build_layer: Makes each linear map from its weight ``[out, in]``, but that of the target's hidden states, whose
            numbers differ by orders of magnitude; ``None``: plain ones.

    Returns:
        The head in evaluation mode.
    """
    with torch.device("meta"):
        head = Eagle3Head(config)
    for name, shape in head_shapes(config).items():
        module_name, _, parameter_name = name.rpartition(".")
        values = torch.from_numpy(np.ascontiguousarray(tensor(name))).to(device=device, dtype=dtype)
        if build_layer is not None and len(shape) == 2 and module_name not in ("embed_tokens", "fc"):
            parent, _, own_name = module_name.rpartition(".")
            setattr(head.get_submodule(parent), own_name, build_layer(values))
        else:
            setattr(head.get_submodule(module_name), parameter_name, nn.Parameter(values, requires_grad=False))
    head.refresh_derived()
    return head.to(device=device).eval()
