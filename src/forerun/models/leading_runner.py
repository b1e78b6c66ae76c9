"""The process that knows what comes next leads; the others make its calls after it, each with its share of the model.

The first process chooses the tokens and verifies drafts; the others compute their parts of sums and logits for it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

import numpy as np
import torch
from torch import Tensor, distributed

from forerun.core.errors import DeviceError, DeviceMemoryError, ForerunError
from forerun.core.protocols import Pending
from forerun.core.rows import Rows
from forerun.core.selection import CHOICE_ARRAYS, FLOAT_CHOICE_ARRAYS, Selection
from forerun.models.cache_bounds import check_rows, check_slots, check_span
from forerun.models.draft_laws import DraftLaws
from forerun.models.graph_pool import Recorder
from forerun.models.tensor_parallel import Collective, TensorParallelRunner

_STOP, _FORWARD, _MOVE, _COPY, _READ, _WRITE, _RECORD_ANEW = range(7)
_SELECTION_NAMES: Final = (*CHOICE_ARRAYS, "keys", "draws", "drafted", "accepts", "has_laws")
"""What a selection may have, each a bit of the number that says what one has."""


class LeadingRunner:
    """The first process's end: passes every call on to the processes that :func:`follow`.

    What a call may not ask is refused here, before anyone has heard of it.

    Args:
        runner: This process's share.
        collective: The processes.
        check: Called before each message; raises where a follower is gone.
    """

    def __init__(
        self, runner: TensorParallelRunner, collective: Collective, *, check: Callable[[], None] = lambda: None
    ) -> None:
        self._runner, self._collective, self._check = runner, collective, check
        self.num_sequences, self.capacity, self.vocab_ids = runner.num_sequences, runner.capacity, runner.vocab_ids
        self.verifies_drafts = True

    @property
    def recorder(self) -> Recorder:
        """Launches this process's passes."""
        return self._runner.recorder

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._runner.vocab_size

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.forward`.

        Raises:
            RequestError: A row lies outside the cache or the vocabulary.
            DeviceMemoryError: Memory is too short for the pass in one of the processes.
            DeviceError: A process that shares the model is gone.
        """
        return self.launch(rows, logit_rows=logit_rows).result()

    def launch(
        self, rows: Rows, selection: Selection | None = None, *, logit_rows: np.ndarray | None = None
    ) -> Pending:
        """As :meth:`forerun.core.protocols.TokenModel.launch`.

        Raises:
            RequestError: As :meth:`forward`.
            DeviceMemoryError: As :meth:`forward`.
            DeviceError: As :meth:`forward`, and so may the result's reading.
        """
        wanted = self._say_forward(rows, selection, logit_rows)
        with self._exchanges():
            return _Answer(self._runner.launch(rows, selection, logit_rows=wanted), self._exchanges)

    def verify_by(self, laws: DraftLaws) -> None:
        """As :meth:`forerun.models.device_runner.DeviceRunner.verify_by`; the laws lie beside this process's share."""
        self._say(_RECORD_ANEW, [])
        self._runner.verify_by(laws)

    def keep_features(self, layer_ids: Sequence[int]) -> None:
        """As :meth:`forerun.core.features.FeatureSource.keep_features`: this process has all of them."""
        self._say(_RECORD_ANEW, [])
        self._runner.kept.keep_features(layer_ids)

    def features(self, sequence: int, start: int, stop: int) -> Tensor:
        """As :meth:`forerun.models.device_head.FeatureLender.features`."""
        return self._runner.kept.features(sequence, start, stop)

    def read_features(self, sequence: int, start: int, stop: int) -> np.ndarray:
        """As :meth:`forerun.core.features.FeatureSource.read_features`."""
        return self._runner.kept.read_features(sequence, start, stop)

    def write_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        """As :meth:`forerun.core.features.FeatureSource.write_features`."""
        self._runner.kept.write_features(sequence, start, features)

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.move_slots`."""
        check_slots(sequence, sources, targets, num_sequences=self.num_sequences, capacity=self.capacity)
        self._say(_MOVE, [sequence, len(sources)], np.array([*sources, *targets]))
        self._runner.move_slots(sequence, sources, targets)

    def copy_slots(self, source: int, target: int, start: int, stop: int) -> None:
        """As :meth:`forerun.core.protocols.SlotCopier.copy_slots`."""
        for sequence in (source, target):
            check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        self._say(_COPY, [source, target, start, stop])
        self._runner.copy_slots(source, target, start, stop)

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.read_states`."""
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        self._say(_READ, [sequence, start, stop], np.array(layer_ids))
        return self._runner.read_states(sequence, start, stop, layer_ids=layer_ids)

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.write_states`."""
        stop = start + len(states)
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        self._say(_WRITE, [sequence, start, *states.shape])
        self._collective.send(torch.from_numpy(np.ascontiguousarray(states, np.float32)))
        self._runner.write_states(sequence, start, states)

    def close(self) -> None:
        """Let the others go.

        Raises:
            DeviceError: One of them has gone already.
        """
        self._say(_STOP, [])

    def _say_forward(self, rows: Rows, selection: Selection | None, logit_rows: np.ndarray | None) -> np.ndarray:
        """Check rows, pass them on, and return which are wanted."""
        check_rows(
            rows,
            num_sequences=self.num_sequences,
            capacity=self.capacity,
            vocab_size=self._runner.config.vocab_size,
        )
        wanted = np.arange(len(rows)) if logit_rows is None else logit_rows
        arrays = {} if selection is None else selection.arrays
        names = [name for name in _SELECTION_NAMES if name in arrays]
        columns = np.column_stack(
            (
                rows.sequences,
                rows.token_ids,
                rows.positions,
                rows.slots,
                rows.lengths,
                rows.num_ancestors,
                rows.ancestors,
            )
        )
        choice = [arrays[name].view(np.int64) for name in names]
        kind = sum(1 << _SELECTION_NAMES.index(name) for name in names)
        self._say(_FORWARD, [*columns.shape, len(wanted), kind], columns, wanted, *choice)
        return wanted

    @contextmanager
    def _exchanges(self) -> Iterator[None]:
        """Tell of what fails within, and whether the others are still there."""
        try:
            with exchange_failures():
                yield
        except ForerunError:
            raise
        except RuntimeError:
            self._check()  # an exchange that was broken off may fail in any words
            raise
        self._check()  # what was computed with one that is gone is nothing

    def _say(self, command: int, head: Sequence[int], *arrays: np.ndarray) -> None:
        self._check()
        words = np.concatenate([np.array(head, np.int64), *(array.astype(np.int64).reshape(-1) for array in arrays)])
        with exchange_failures():
            self._collective.send(torch.tensor([command, len(words)]))
            if len(words):
                self._collective.send(torch.from_numpy(words))


class _Answer:
    """Results of a pass that others take part in."""

    def __init__(self, own: Pending, exchanges: Callable[[], AbstractContextManager[None]]) -> None:
        self._own, self._exchanges = own, exchanges

    def result(self) -> np.ndarray:
        with self._exchanges():
            return self._own.result()


@contextmanager
def exchange_failures() -> Iterator[None]:
    """Tell an exchange that failed as what it is: another process has ended, or a device is out of memory."""
    try:
        yield
    except (distributed.DistError, torch.OutOfMemoryError) as error:
        raise DeviceError(f"the processes that share the model can't go on: {error}") from error
    except RuntimeError as error:
        if isinstance(error, ForerunError) or "gloo" not in str(error):
            raise
        raise DeviceError(f"a process that shares the model is gone: {error}") from error


def follow(runner: TensorParallelRunner, collective: Collective) -> None:
    """Make the calls that the first process makes, until it closes; its answers are the ones that are read.

    Args:
        runner: This process's share.
        collective: The processes.
    """
    runner.leave_choices()
    while True:
        command, length = collective.send(torch.zeros(2, dtype=torch.int64)).tolist()
        if command == _STOP:
            return
        if command == _RECORD_ANEW:
            runner.record_anew()
            continue
        words = collective.send(torch.zeros(length, dtype=torch.int64)).numpy()
        if command == _FORWARD:
            with suppress(DeviceMemoryError):  # all have given the pass up, and the first decides what is next
                _follow_forward(runner, words)
        elif command == _MOVE:
            sequence, count = words[:2].tolist()
            runner.move_slots(sequence, words[2 : 2 + count].tolist(), words[2 + count :].tolist())
        elif command == _COPY:
            source, target, start, stop = words.tolist()
            runner.copy_slots(source, target, start, stop)
        elif command == _READ:
            sequence, start, stop, *layer_ids = words.tolist()
            runner.read_states(sequence, start, stop, layer_ids=layer_ids)
        else:
            sequence, start, *shape = words.tolist()
            runner.write_states(sequence, start, collective.send(torch.zeros(shape)).numpy())


def _follow_forward(runner: TensorParallelRunner, words: np.ndarray) -> None:
    num_rows, num_columns, num_wanted, kind = words[:4].tolist()
    table, wanted, rest = np.split(words[4:], np.cumsum([num_rows * num_columns, num_wanted]))
    rows = _rows(table.reshape(num_rows, num_columns))
    names = [name for place, name in enumerate(_SELECTION_NAMES) if kind >> place & 1]
    parts = zip(names, rest.reshape(len(names), num_wanted), strict=True)
    arrays = {name: part.view(np.float64) if name in FLOAT_CHOICE_ARRAYS else part for name, part in parts}
    runner.launch(rows, Selection(arrays=arrays) if names else None, logit_rows=wanted).result()


def _rows(table: np.ndarray) -> Rows:
    columns = [np.ascontiguousarray(column) for column in table[:, :6].T]
    sequences, token_ids, positions, slots, lengths, num_ancestors = columns
    return Rows(
        sequences=sequences,
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        lengths=lengths,
        ancestors=np.ascontiguousarray(table[:, 6:]),
        num_ancestors=num_ancestors,
    )
