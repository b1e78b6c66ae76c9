"""An EAGLE-3 head in passes of fixed shape: the device's twin of :class:`forerun.models.eagle3_runner.Eagle3Runner`.

Hidden states lie in slots beside keys and values: the target's, projected, where the target has read a token, and the
head's own elsewhere, in the slots of draft trees too. A row reads that of the slot before it, which the pass is told.

Shape legend: N sequences, R rows of each, C sequences of the cache, S slots, E hidden of the head, V columns.
"""

from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.protocols import Pending
from forerun.core.rows import Rows
from forerun.models.cache_bounds import check_rows, check_span
from forerun.models.eagle3 import Eagle3Head
from forerun.models.eagle3_runner import slots_before
from forerun.models.graph_pool import EagerRecorder, GraphPool, Recorder
from forerun.models.packing import PackedLayout
from forerun.models.row_grid import RowGrid
from forerun.models.slot_cache import SlotCache
from forerun.models.static_pass import GridAttention, PassGrid


class FeatureLender(Protocol):
    """A target on a device that keeps hidden states there."""

    @property
    def recorder(self) -> Recorder:
        """The order of its passes."""
        ...

    def features(self, sequence: int, start: int, stop: int) -> Tensor:
        """Return what was kept of neighbouring slots, ``[stop - start, layers, hidden]``, where it lies.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        ...


class DeviceHead:
    """A head, its keys, values and hidden states, on a device.

    Args:
        head: Its parameters' dtype and device are those of the runner.
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence.
        vocab_ids: Target ids of what it can propose, ascending; ``None``: all of the target's.
        recorder: Launches its passes, on the head's device; by default they are run eagerly.
        num_tree_slots: Further slots of each sequence, for draft trees.

    Raises:
        ConfigError: ``num_sequences`` or ``capacity`` is below 1.

    Effects:
        Allocates ``C * S * (2 * num_kv_heads * head_dim + hidden_size)`` numbers.
    """

    def __init__(
        self,
        head: Eagle3Head,
        *,
        num_sequences: int = 1,
        capacity: int = 2048,
        vocab_ids: np.ndarray | None = None,
        recorder: Recorder | None = None,
        num_tree_slots: int = 0,
    ) -> None:
        layer, weight = head.config.layer, head.norm.weight
        self.num_sequences, self.capacity, self.vocab_ids = num_sequences, capacity, vocab_ids
        self.num_tree_slots, self.spare_slot = num_tree_slots, capacity + num_tree_slots
        self.recorder = recorder or EagerRecorder(weight.device)
        self.graphs = GraphPool(self.recorder)
        ids = np.arange(head.config.draft_vocab_size) if vocab_ids is None else vocab_ids
        self.column_ids = torch.from_numpy(ids).to(weight.device)
        self._head = head
        self._cache = SlotCache(
            layer,
            num_sequences=num_sequences,
            capacity=capacity,
            num_spare=num_tree_slots + 1,
            dtype=weight.dtype,
            device=weight.device,
        )
        shape = (*self._cache.positions.shape, layer.hidden_size)
        self._hidden_CSE = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self._num_given_C = torch.zeros(num_sequences, dtype=torch.int64, device=weight.device)
        self.recorder.catch_up()

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return len(self.column_ids)

    @torch.inference_mode()
    def take_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        """As :meth:`forerun.core.features.FeatureReader.take_features`."""
        self._take(sequence, start, torch.from_numpy(features))

    @torch.inference_mode()
    def borrow_features(self, sequence: int, start: int, stop: int, *, lender: FeatureLender) -> None:
        """Take the same from a target, without the host; returns before it is copied.

        Args:
            sequence: Which sequence, of both.
            start: Position of the first token, where the last call ended.
            stop: Position after the last.
            lender: Has computed the states already, as the host has seen by a result of that pass, and leaves them as
                they are while the text goes on. Nothing waits for what it computes meanwhile.
        """
        self._take(sequence, start, lender.features(sequence, start, stop))

    def _take(self, sequence: int, start: int, features: Tensor) -> None:
        stop = start + len(features)
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        with self.recorder.in_order():
            given = features.to(self._hidden_CSE, non_blocking=True)
            self._hidden_CSE[sequence, start:stop] = self._head.fuse(given)
            self._num_given_C[sequence].fill_(stop)

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`forerun.models.eagle3_runner.Eagle3Runner.forward`; logits of a first token mean nothing."""
        return self._once(rows, np.arange(len(rows)) if logit_rows is None else logit_rows).result()

    def read(self, rows: Rows) -> Pending:
        """Write the keys, values and hidden states of rows, and return without waiting.

        Raises:
            RequestError: As :meth:`forward`.
        """
        return self._once(rows, np.zeros(0, np.int64))

    def pass_logits(
        self, grid: PassGrid, *, span: int, cells: tuple[Tensor, Tensor] | None = None
    ) -> Float[Tensor, "_ V"]:
        """Run rows whose hidden states before are there, and return logits, as in a pass of a decoder.

        Args:
            grid: The rows; their ``before`` is given.
            span: Slots that hold every prefix.
            cells: As for :meth:`forerun.models.static_pass.StaticPass.logits`.
        """
        assert grid.before is not None, "a head reads the hidden state of the token before"
        column = grid.column
        attend = GridAttention(grid, self._cache, span=span, first_slot=1)  # nothing was read with the first token
        out_NRE, normed_NRE = self._head(
            grid.token_ids,
            self._hidden_CSE[column, grid.before],
            positions_BT=grid.positions,
            attend=partial(attend, layer=0),
        )
        # What the target has given stays.
        own = torch.where(grid.slots >= self._num_given_C[column], grid.slots, self.spare_slot)
        self._hidden_CSE[column, own] = out_NRE
        return self._head.lm_head(normed_NRE if cells is None else normed_NRE[cells]).float()

    def chain_logits(self, grid: PassGrid, *, span: int) -> Float[Tensor, "N R V"]:
        """Return the logits of rows of which each reads the hidden state of the one before: one after the other."""
        return torch.cat(
            [self.pass_logits(_column_of(grid, place), span=span) for place in range(grid.token_ids.shape[1])], dim=1
        )

    def _once(self, rows: Rows, wanted: np.ndarray) -> Pending:
        layer = self._head.config.layer
        check_rows(rows, num_sequences=self.num_sequences, capacity=self.capacity, vocab_size=layer.vocab_size)
        grid = RowGrid.of(
            rows,
            num_sequences=self.num_sequences,
            num_slots=self.capacity,
            spare_slot=self.spare_slot,
            is_padded=False,
        )
        before = np.zeros_like(grid.arrays["slots"])
        before[grid.cells] = slots_before(rows)
        arrays = grid.arrays | {"sequences": grid.sequences, "before": before}
        arrays |= {"cell_sequences": grid.cells[0][wanted], "cell_rows": grid.cells[1][wanted]}
        layout = PackedLayout({name: array.shape for name, array in arrays.items()})

        def run(words: Tensor) -> Tensor:
            inputs = layout.unpack(words)
            cells = (inputs["cell_sequences"], inputs["cell_rows"])
            whole = PassGrid.of(inputs, is_dense=grid.shape.is_dense)
            return self.pass_logits(whole, span=grid.shape.span, cells=cells)

        return self.graphs.run(run, layout.pack(arrays))


def _column_of(grid: PassGrid, place: int) -> PassGrid:
    """Return the rows at one place of their sequences."""
    assert grid.before is not None, "a head reads the hidden state of the token before"
    only = slice(place, place + 1)
    return replace(
        grid,
        token_ids=grid.token_ids[:, only],
        positions=grid.positions[:, only],
        slots=grid.slots[:, only],
        visible=grid.visible[:, only],
        before=grid.before[:, only],
    )
