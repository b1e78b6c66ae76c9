"""The path for GPUs: passes of few fixed shapes, replayed as graphs, with tokens chosen where the logits are.

One pass is one copy of integers to the device, one launch, and one copy back: token ids where that is enough, logits
where sampling parameters need the host. The same functions run eagerly on a CPU, where tests hold them to the plain
path (:class:`~forerun.models.torch_runner.TorchRunner`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.core.protocols import Pending
from forerun.core.rows import Rows
from forerun.core.selection import FLOAT_CHOICE_ARRAYS, Selection
from forerun.models.cache_bounds import check_rows
from forerun.models.decoder import Decoder
from forerun.models.draft_laws import DraftLaws
from forerun.models.graph_pool import EagerRecorder, GraphPool, MemoryPact, Recorder
from forerun.models.packing import PackedLayout
from forerun.models.row_grid import RowGrid
from forerun.models.slot_cache import SlotCache
from forerun.models.static_pass import PassGrid, StaticPass
from forerun.nn.gumbel import select_tokens
from forerun.nn.prefix_attention import AttentionBackend
from forerun.nn.token_laws import Drafted, drawn_tokens, processed_scores
from forerun.nn.truncation import Truncation

MAX_GRAPH_WIDTH = 32
"""Rows of a sequence up to which a pass is replayed; longer ones, parts of prompts, have time for their launches."""


class DeviceRunner:
    """Runs a decoder by graphs of fixed shape, and owns its key/value cache.

    Equal rows get equal logits up to rounding, which may depend on the shape of the pass.

    Args:
        decoder: The model; its parameters' dtype and device are those of the runner.
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence.
        vocab_ids: Target ids of the rows of a reduced output head, ascending; ``None`` for the whole vocabulary.
        recorder: Records graphs on the decoder's device; by default functions are run eagerly.
        backend: How the common prefix of a sequence's rows is read.
        num_tree_slots: Further slots of each sequence, for draft trees.
        head: From last hidden states to the logits of all columns; ``None``: the decoder's own.
        pact: What processes do together when memory is short in one of them, for one share of a model; ``None``: the
            model is whole.

    Attributes:
        chooses: Whether tokens are chosen where that is asked for; a process whose answers nobody reads makes the same
            passes without, and gives zeros.

    Raises:
        ConfigError: ``num_sequences`` or ``capacity`` is below 1, or the recorder is of another device.

    Effects:
        Allocates the cache; graphs keep buffers of their own from the first pass of their shape on. Joins projections
        of the decoder (:meth:`forerun.models.decoder.Decoder.join_projections`).
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_sequences: int = 1,
        capacity: int = 2048,
        vocab_ids: np.ndarray | None = None,
        recorder: Recorder | None = None,
        backend: AttentionBackend = "matmul",
        num_tree_slots: int = 0,
        head: Callable[[Tensor], Tensor] | None = None,
        pact: MemoryPact | None = None,
    ) -> None:
        weight = decoder.lm_head.weight
        self.config, self.num_sequences, self.capacity = decoder.config, num_sequences, capacity
        self.vocab_ids = vocab_ids
        self.verifies_drafts = True
        self.chooses = True
        self.num_tree_slots = num_tree_slots
        self.spare_slot = capacity + num_tree_slots
        self.cache = SlotCache(
            decoder.config,
            num_sequences=num_sequences,
            capacity=capacity,
            num_spare=num_tree_slots + 1,
            dtype=weight.dtype,
            device=weight.device,
        )
        ids = np.arange(decoder.config.vocab_size) if vocab_ids is None else vocab_ids
        self.column_ids = torch.from_numpy(ids).to(weight.device)
        decoder.join_projections()
        self._static = StaticPass(decoder, self.cache, head or decoder.head(vocab_ids), backend=backend, pact=pact)
        self.recorder = recorder or EagerRecorder(weight.device)
        if self.recorder.device != weight.device:
            raise ConfigError(
                f"a recorder for {self.recorder.device} and a model on {weight.device}: put both on one device"
            )
        self.graphs = GraphPool(self.recorder, pact=pact)
        self._draft_laws: DraftLaws | None = None
        self.recorder.catch_up()

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return len(self.column_ids)

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.forward`.

        Raises:
            RequestError: A row lies outside the cache or the vocabulary; nothing has been written then.
        """
        return self.launch(rows, logit_rows=logit_rows).result()

    def launch(
        self, rows: Rows, selection: Selection | None = None, *, logit_rows: np.ndarray | None = None
    ) -> Pending:
        """As :meth:`forerun.core.protocols.TokenModel.launch`.

        Raises:
            RequestError: As :meth:`forward`.
        """
        wanted = np.arange(len(rows)) if logit_rows is None else logit_rows
        width = int(np.bincount(rows.sequences.clip(0)).max()) if len(rows) else 0
        if width > MAX_GRAPH_WIDTH:
            return self._once(self._grid(rows, is_padded=False), wanted, selection)
        return self._replay(self._grid(rows, is_padded=True), wanted, selection)

    def verify_by(self, laws: DraftLaws) -> None:
        """Verify draft tokens by the laws that lie there, where a selection says so; passes are recorded anew.

        Args:
            laws: On this runner's device.
        """
        self._draft_laws = laws
        self.record_anew()

    def record_anew(self) -> None:
        """Drop what is recorded, for passes are to do something else from now on."""
        self.graphs.clear()

    def pass_logits(
        self, grid: PassGrid, *, span: int, cells: tuple[Tensor, Tensor] | None = None
    ) -> Float[Tensor, "_ V"]:
        """As :meth:`forerun.models.static_pass.StaticPass.logits`."""
        return self._static.logits(grid, span=span, cells=cells)

    def chain_logits(self, grid: PassGrid, *, span: int) -> Float[Tensor, "N R V"]:
        """Return the logits of rows of which each follows the one before."""
        return self._static.logits(grid, span=span)

    def read(self, rows: Rows) -> Pending:
        """Write the keys and values of rows, and return without waiting.

        Raises:
            RequestError: As :meth:`forward`.
        """
        return self._once(self._grid(rows, is_padded=False), np.zeros(0, np.int64), None)

    def _grid(self, rows: Rows, *, is_padded: bool) -> RowGrid:
        check_rows(rows, num_sequences=self.num_sequences, capacity=self.capacity, vocab_size=self.config.vocab_size)
        return RowGrid.of(
            rows,
            num_sequences=self.num_sequences,
            num_slots=self.capacity,
            spare_slot=self.spare_slot,
            is_padded=is_padded,
        )

    def _replay(self, grid: RowGrid, wanted: np.ndarray, selection: Selection | None) -> Pending:
        """Run a padded grid, choosing for every cell, and return what the wanted rows have."""
        shape, of_all = grid.shape, (grid.shape.num_sequences, grid.shape.width)
        choice = {} if selection is None else selection.needed
        layout = PackedLayout(shape.array_shapes | dict.fromkeys(choice, of_all), floats=FLOAT_CHOICE_ARRAYS)
        cells = (grid.cells[0][wanted], grid.cells[1][wanted])
        arrays = dict(grid.arrays)
        has_noise = selection is not None and selection.has_noise
        for name, values in choice.items():
            arrays[name] = np.zeros(of_all, values.dtype)
            arrays[name][cells] = values

        def run(words: Tensor) -> Tensor:
            inputs = layout.unpack(words)
            logits = self.pass_logits(PassGrid.of(inputs, is_dense=shape.is_dense), span=shape.span)
            if selection is None:
                return logits
            each, place = (torch.arange(size, device=logits.device) for size in of_all)
            return self._select(logits, inputs, (each.unsqueeze(1), place), has_noise=has_noise)

        key = ("pass", shape, tuple(choice), has_noise)
        return _Cells(self.graphs.launch(key, run, layout.pack(arrays)), cells)

    def _once(self, grid: RowGrid, wanted: np.ndarray, selection: Selection | None) -> Pending:
        """Run a grid as it is, and compute logits of the wanted rows only."""
        choice = {} if selection is None else selection.needed
        arrays = grid.arrays | choice | {"sequences": grid.sequences}
        arrays |= {"cell_sequences": grid.cells[0][wanted], "cell_rows": grid.cells[1][wanted]}
        layout = PackedLayout({name: array.shape for name, array in arrays.items()}, floats=FLOAT_CHOICE_ARRAYS)

        def run(words: Tensor) -> Tensor:
            inputs = layout.unpack(words)
            cells = (inputs["cell_sequences"], inputs["cell_rows"])
            whole = PassGrid.of(inputs, is_dense=grid.shape.is_dense)
            logits = self.pass_logits(whole, span=grid.shape.span, cells=cells)
            if selection is None:
                return logits
            places = (inputs["sequences"][cells[0]], cells[1])
            return self._select(logits, inputs, places, has_noise=selection.has_noise)

        return self.graphs.run(run, layout.pack(arrays))

    def _select(
        self, logits: Tensor, inputs: dict[str, Tensor], places: tuple[Tensor, Tensor], *, has_noise: bool
    ) -> Tensor:
        """Choose the token of each row, whose sequence and place among that sequence's rows are given."""
        if not self.chooses:
            return torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
        temperatures, truncation = inputs["temperatures"], Truncation.of(inputs)
        if "draws" in inputs:
            drafted = Drafted.of(inputs, **self._laws_at(places) if "has_laws" in inputs else {})
            scores = processed_scores(logits, temperatures, truncation)
            return drawn_tokens(scores, temperatures, inputs["draws"], self.column_ids, drafted=drafted)
        return select_tokens(
            logits, temperatures, inputs["keys"], self.column_ids, has_noise=has_noise, truncation=truncation
        )

    def _laws_at(self, places: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return what lies beside of the laws of drafts; of the last one's for places beyond."""
        laws = self._draft_laws
        assert laws is not None, "a selection says that laws lie here, and verify_by() has not been called"
        sequences, rows = places
        scores = laws.scores[sequences, rows.clamp(max=laws.scores.shape[1] - 1)]
        return {"scores": scores, "columns": torch.searchsorted(self.column_ids, laws.columns)}

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.move_slots`.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        with self.recorder.in_order():
            self.cache.move_slots(sequence, sources, targets)

    def copy_slots(self, source: int, target: int, start: int, stop: int) -> None:
        """As :meth:`forerun.core.protocols.SlotCopier.copy_slots`; nothing passes through the host."""
        with self.recorder.in_order():
            self.cache.copy_slots(source, target, start, stop)

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.read_states`."""
        with self.recorder.in_order():
            return self.cache.read_states(sequence, start, stop, layer_ids=layer_ids)

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.write_states`."""
        with self.recorder.in_order():
            self.cache.write_states(sequence, start, states)

    @torch.inference_mode()
    def borrow_states(self, sequence: int, start: int, stop: int, *, lender: "LentLayers") -> None:
        """Take keys and values that a target has computed as those of this model; returns before they are copied.

        Nothing waits for what the target computes meanwhile.

        Args:
            sequence: Which sequence, of both.
            start: First slot.
            stop: Slot after the last.
            lender: Has as many layers as this model; its states are there, as the host has seen by a result of the
                pass that computed them, and stay while the text goes on.
        """
        with self.recorder.in_order():
            self.cache.borrow_states(sequence, start, stop, lender=lender.target.cache, runs=lender.runs)

    def keep_features(self, layer_ids: Sequence[int]) -> None:
        """As :meth:`forerun.core.features.FeatureSource.keep_features`; passes are recorded anew."""
        with self.recorder.in_order():
            self.cache.keep_features(layer_ids)
        self.record_anew()

    def read_features(self, sequence: int, start: int, stop: int) -> np.ndarray:
        """As :meth:`forerun.core.features.FeatureSource.read_features`."""
        with self.recorder.in_order():
            return self.cache.read_features(sequence, start, stop)

    def features(self, sequence: int, start: int, stop: int) -> Tensor:
        """As :meth:`forerun.models.device_head.FeatureLender.features`."""
        return self.cache.features(sequence, start, stop)

    def write_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        """As :meth:`forerun.core.features.FeatureSource.write_features`."""
        with self.recorder.in_order():
            self.cache.write_features(sequence, start, features)


class _Cells:
    """Results of some cells of a grid."""

    def __init__(self, whole: Pending, cells: tuple[np.ndarray, np.ndarray]) -> None:
        self._whole, self._cells = whole, cells

    def result(self) -> np.ndarray:
        return self._whole.result()[self._cells]


@dataclass(frozen=True, kw_only=True, slots=True)
class LentLayers:
    """Layers of a target whose keys and values a draft reads as its own.

    Attributes:
        target: Has computed them.
        runs: First layer of the draft, first layer of the target, and how many follow each other in both.
    """

    target: DeviceRunner
    runs: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, target: DeviceRunner, layer_ids: Sequence[int]) -> "LentLayers":
        """Lend layers by number, one for each of the draft's."""
        starts = [
            place for place in range(len(layer_ids)) if place == 0 or layer_ids[place] != layer_ids[place - 1] + 1
        ]
        ends = [*starts[1:], len(layer_ids)]
        runs = tuple((start, layer_ids[start], end - start) for start, end in zip(starts, ends, strict=True))
        return cls(target=target, runs=runs)
