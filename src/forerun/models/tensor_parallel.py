"""One model over several devices: each holds a share of the heads, of the MLP and of the vocabulary.

Query, key, value, gate and up projections are split by output (whole heads together), the projections back to the
residual stream by input, and what those give is summed over the devices, twice a layer. The embedding and the norms are
whole everywhere; each device computes the logits of a part of the vocabulary, and gets those of the others. So a share
is a decoder like any other, run as any other is, and every process chooses the same tokens. The law is that of one
device, up to the rounding of a sum in parts (and, with weights of 8 or 4 bits, of scales over a part of the inputs).

Every process makes the same calls and gets the same answers (:class:`TensorParallelRunner`). Where one process alone
knows what comes next, it leads and the others follow (:class:`LeadingRunner`, :func:`follow`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import linear, pad

from forerun.core.dtype_choice import DtypeName
from forerun.core.errors import DeviceError, ForerunError
from forerun.core.rows import Rows
from forerun.core.selection import CHOICE_ARRAYS, Selection
from forerun.models.cache_bounds import check_rows, check_slots, check_span
from forerun.models.decoder import Decoder, DecoderLayer
from forerun.models.device_runner import DeviceRunner
from forerun.models.model_share import ModelSplit
from forerun.models.weight_format import load_decoder

_STOP, _FORWARD, _MOVE, _COPY, _READ, _WRITE = range(6)
_CHOICE_NAMES: Final = (*CHOICE_ARRAYS, "keys")


class Collective(Protocol):
    """Exchange between the processes that share a model; each call is made by all of them.

    Attributes:
        rank: Of this process.
        size: How many there are.
    """

    rank: int
    size: int

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes; may reuse ``values``."""
        ...

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the values of every process, in the order of ranks; all have one shape."""
        ...

    def send(self, values: Tensor) -> Tensor:
        """Return the first process's values, on the CPU; the others give a tensor of the same shape to receive in."""
        ...


class ProcessCollective:
    """The processes of ``torch.distributed``: NCCL between GPUs, gloo between CPUs and for messages."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def sum(self, values: Tensor) -> Tensor:
        """As :meth:`Collective.sum`."""
        distributed.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """As :meth:`Collective.gather`."""
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(parts, values)
        return parts

    def send(self, values: Tensor) -> Tensor:
        """As :meth:`Collective.send`."""
        distributed.broadcast(values, 0)
        return values


class _SharedHead:
    """From last hidden states to the logits of every process's columns.

    Args:
        weight: The whole head; this process's part is copied out of it.
        ids: Rows of the head that are columns, ascending.
        counts: Columns of each process.
        collective: The processes.
    """

    def __init__(self, weight: Tensor, ids: np.ndarray, counts: Sequence[int], collective: Collective) -> None:
        rank = collective.rank
        own = ids[sum(counts[:rank]) : sum(counts[: rank + 1])]
        self._weight = weight.detach()[torch.from_numpy(own).to(weight.device)]
        self._counts, self._collective = tuple(counts), collective

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = linear(hidden, self._weight)
        parts = self._collective.gather(pad(logits, (0, max(self._counts) - logits.shape[-1])))
        return torch.cat([part[..., :count] for part, count in zip(parts, self._counts, strict=True)], dim=-1)


def load_share(
    split: ModelSplit,
    tensor: Callable[[str], np.ndarray],
    collective: Collective,
    *,
    dtype: DtypeName,
    device: torch.device,
) -> Decoder:
    """Load one process's share of a decoder, whose layers then exchange sums with the others.

    Args:
        split: Who gets what.
        tensor: Gives a whole weight by its name.
        collective: The processes.
        dtype: Format of the weights, any but int8.
        device: Of this process.

    Raises:
        ConfigError: A share can't have its weights in this format.
    """
    rank = collective.rank
    decoder = load_decoder(
        split.share_config(rank),
        lambda name: np.ascontiguousarray(split.share_tensor(name, tensor(name), rank=rank)),
        dtype=dtype,
        device=device,
    )

    def add_up(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return collective.sum(output)

    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        layer.self_attn.o_proj.register_forward_hook(add_up)
        layer.mlp.down_proj.register_forward_hook(add_up)
    return decoder


class TensorParallelRunner:
    """A share of a model among others; all processes make the same calls.

    Args:
        split: Who gets what.
        tensor: Gives a whole weight by its name.
        build: Makes the runner of a share, of its decoder and its head; of the same cache in every process.
        collective: The processes.
        vocab_ids: Target ids of the columns of all processes together, ascending; ``None`` for the whole vocabulary.
        dtype: Format of the weights, any but int8.
        device: Of this process.

    Raises:
        ConfigError: The model can't be shared so.
    """

    def __init__(
        self,
        split: ModelSplit,
        tensor: Callable[[str], np.ndarray],
        build: Callable[[Decoder, Callable[[Tensor], Tensor]], DeviceRunner],
        *,
        collective: Collective,
        vocab_ids: np.ndarray | None = None,
        dtype: DtypeName = "float32",
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a device is a value)
    ) -> None:
        decoder = load_share(split, tensor, collective, dtype=dtype, device=device)
        ids = np.arange(split.config.vocab_size) if vocab_ids is None else vocab_ids
        head = _SharedHead(decoder.lm_head.weight, ids, split.columns(len(ids)), collective)
        decoder.lm_head.weight = decoder.embed_tokens.weight  # the share has its part; the whole may go
        self._own = build(decoder, head)
        self.config, self.vocab_ids = split.config, vocab_ids
        self.num_sequences, self.capacity = self._own.num_sequences, self._own.capacity
        self._split, self._collective, self._device = split, collective, device

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._own.vocab_size

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.forward`; every process gets all logits."""
        return self._own.forward(rows, logit_rows=logit_rows)

    def forward_ids(self, rows: Rows, selection: Selection, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`forerun.core.protocols.TokenModel.forward_ids`; every process chooses, and alike."""
        return self._own.forward_ids(rows, selection, logit_rows=logit_rows)

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.move_slots`."""
        self._own.move_slots(sequence, sources, targets)

    def copy_slots(self, source: int, target: int, start: int, stop: int) -> None:
        """As :meth:`forerun.core.protocols.SlotCopier.copy_slots`; each process copies its heads."""
        self._own.copy_slots(source, target, start, stop)

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.read_states`, of the heads of all processes."""
        own = torch.from_numpy(self._own.read_states(sequence, start, stop, layer_ids=layer_ids)).to(self._device)
        counts = self._split.num_kv_heads
        parts = self._collective.gather(pad(own, (0, 0, 0, max(counts) - own.shape[3])))
        whole = torch.cat([part[:, :, :, :count] for part, count in zip(parts, counts, strict=True)], dim=3)
        return whole.cpu().numpy()

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.write_states`; each process keeps its heads."""
        own = self._split.share_states(states, rank=self._collective.rank)
        self._own.write_states(sequence, start, np.ascontiguousarray(own))


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

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._runner.vocab_size

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.forward`.

        Raises:
            RequestError: A row lies outside the cache or the vocabulary.
            DeviceError: A process that shares the model is gone.
        """
        wanted = self._say_forward(rows, None, logit_rows)
        with exchange_failures():
            return self._runner.forward(rows, logit_rows=wanted)

    def forward_ids(self, rows: Rows, selection: Selection, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`forerun.core.protocols.TokenModel.forward_ids`.

        Raises:
            RequestError: As :meth:`forward`.
            DeviceError: As :meth:`forward`.
        """
        wanted = self._say_forward(rows, selection, logit_rows)
        with exchange_failures():
            return self._runner.forward_ids(rows, selection, logit_rows=wanted)

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
        choice = [] if selection is None else [selection.arrays[name].view(np.int64) for name in _CHOICE_NAMES]
        self._say(_FORWARD, [*columns.shape, len(wanted)], columns, wanted, *choice)
        return wanted

    def _say(self, command: int, head: Sequence[int], *arrays: np.ndarray) -> None:
        self._check()
        words = np.concatenate([np.array(head, np.int64), *(array.astype(np.int64).reshape(-1) for array in arrays)])
        with exchange_failures():
            self._collective.send(torch.tensor([command, len(words)]))
            if len(words):
                self._collective.send(torch.from_numpy(words))


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
    """Make the calls that the first process makes, until it closes.

    Args:
        runner: This process's share.
        collective: The processes.
    """
    while True:
        command, length = collective.send(torch.zeros(2, dtype=torch.int64)).tolist()
        if command == _STOP:
            return
        words = collective.send(torch.zeros(length, dtype=torch.int64)).numpy()
        if command == _FORWARD:
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
    num_rows, num_columns, num_wanted = words[:3].tolist()
    table, wanted, rest = np.split(words[3:], np.cumsum([num_rows * num_columns, num_wanted]))
    rows = _rows(table.reshape(num_rows, num_columns))
    if not len(rest):
        runner.forward(rows, logit_rows=wanted)
        return
    kinds = (*CHOICE_ARRAYS.values(), np.int64)
    parts = rest.reshape(len(_CHOICE_NAMES), num_wanted)
    arrays = {name: part.view(kind) for name, part, kind in zip(_CHOICE_NAMES, parts, kinds, strict=True)}
    runner.forward_ids(rows, Selection(arrays=arrays), logit_rows=wanted)


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
