"""One model over several devices: each holds a share of the heads, of the MLP and of the vocabulary.

Query, key, value, gate and up projections are split by output (whole heads together), the projections back to the
residual stream by input, and what those give is summed over the devices, twice a layer. The embedding and the norms are
whole everywhere; each device computes the logits of a part of the vocabulary. The law is that of one device, up to the
rounding of a sum in parts.

Every process makes the same calls and gets the same answers (:class:`TensorParallelRunner`). Where one process alone
knows what comes next, it leads and the others follow (:class:`LeadingRunner`, :func:`follow`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, distributed, nn

from forerun.core.errors import ConfigError
from forerun.core.protocols import LanguageModel
from forerun.core.rows import Rows
from forerun.models.cache_bounds import check_rows, check_slots, check_span
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder, DecoderLayer
from forerun.models.decoder_weights import fill_decoder

_SPLIT_BY_OUTPUT: Final = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_SPLIT_BY_INPUT: Final = ("o_proj", "down_proj")
_STOP, _FORWARD, _MOVE, _READ, _WRITE = range(5)


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
        """Return the first process's values; the others give a tensor of the same shape to receive them in."""
        ...


class ProcessCollective:
    """The processes of ``torch.distributed``: NCCL between GPUs, gloo between CPUs."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def sum(self, values: Tensor) -> Tensor:
        """As :meth:`Collective.sum`."""
        distributed.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """As :meth:`Collective.gather`."""
        parts = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(parts, values.contiguous())
        return parts

    def send(self, values: Tensor) -> Tensor:
        """As :meth:`Collective.send`."""
        distributed.broadcast(values, 0)
        return values


def share_of_config(config: DecoderConfig, *, size: int) -> DecoderConfig:
    """Return the shape of one process's share.

    Raises:
        ConfigError: Heads or the MLP can't be shared evenly.
    """
    for name in ("num_kv_heads", "intermediate_size"):
        if getattr(config, name) % size:
            raise ConfigError(
                f"{name}={getattr(config, name)} can't be shared by {size} processes: take a number that divides it"
            )
    return replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=config.num_kv_heads // size,
        intermediate_size=config.intermediate_size // size,
    )


def share_of_tensor(name: str, values: np.ndarray, *, rank: int, size: int) -> np.ndarray:
    """Return one process's share of a parameter."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    if module in _SPLIT_BY_OUTPUT:
        return np.array_split(values, size, axis=0)[rank]
    if module in _SPLIT_BY_INPUT:
        return np.array_split(values, size, axis=1)[rank]
    return values


def load_share(
    config: DecoderConfig,
    tensor: Callable[[str], np.ndarray],
    collective: Collective,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Decoder:
    """Load one process's share of a decoder, whose layers then exchange sums with the others.

    Args:
        config: Shape of the whole model.
        tensor: Gives a whole weight by its name.
        collective: The processes.
        dtype: Of the weights.
        device: Of this process.

    Raises:
        ConfigError: Heads or the MLP can't be shared evenly.
    """
    rank, size = collective.rank, collective.size
    decoder = fill_decoder(
        share_of_config(config, size=size),
        lambda name: np.ascontiguousarray(share_of_tensor(name, tensor(name), rank=rank, size=size)),
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
        config: Shape of the whole model.
        tensor: Gives a whole weight by its name.
        build: Makes the runner of a share, from its decoder and the ids of its part of the vocabulary.
        collective: The processes.
        vocab_ids: Target ids of the columns of all processes together, ascending; ``None`` for the whole vocabulary.
        dtype: Of the weights.
        device: Of this process.

    Raises:
        ConfigError: The model can't be shared evenly.
    """

    def __init__(
        self,
        config: DecoderConfig,
        tensor: Callable[[str], np.ndarray],
        build: Callable[[Decoder, np.ndarray], LanguageModel],
        *,
        collective: Collective,
        vocab_ids: np.ndarray | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a device is a value)
    ) -> None:
        decoder = load_share(config, tensor, collective, dtype=dtype, device=device)
        ids = np.arange(config.vocab_size) if vocab_ids is None else vocab_ids
        parts = np.array_split(ids, collective.size)
        self._own = build(decoder, parts[collective.rank])
        decoder.lm_head.weight = decoder.embed_tokens.weight  # the runner has its part; the whole may go
        self.config, self.vocab_ids = config, vocab_ids
        self.num_sequences, self.capacity = self._own.num_sequences, self._own.capacity
        self._collective, self._device = collective, device
        self._widths = [len(part) for part in parts]

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return sum(self._widths)

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.forward`; every process gets all logits."""
        check_rows(rows, num_sequences=self.num_sequences, capacity=self.capacity, vocab_size=self.config.vocab_size)
        own = self._own.forward(rows, logit_rows=logit_rows)
        padded = torch.zeros(len(own), max(self._widths), device=self._device)
        padded[:, : own.shape[1]] = torch.from_numpy(own).to(self._device)
        parts = self._collective.gather(padded)
        return np.concatenate(
            [part[:, :width].cpu().numpy() for part, width in zip(parts, self._widths, strict=True)], axis=1
        )

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.move_slots`."""
        self._own.move_slots(sequence, sources, targets)

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.read_states`, of the heads of all processes."""
        own = torch.from_numpy(self._own.read_states(sequence, start, stop, layer_ids=layer_ids)).to(self._device)
        return torch.cat(self._collective.gather(own), dim=3).cpu().numpy()

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.write_states`; each process keeps its heads."""
        share = np.array_split(states, self._collective.size, axis=3)[self._collective.rank]
        self._own.write_states(sequence, start, np.ascontiguousarray(share))


class LeadingRunner:
    """The first process's end: passes every call on to the processes that :func:`follow`.

    What a call may not ask is refused here, before anyone has heard of it.

    Args:
        runner: This process's share.
        collective: The processes.
        device: Where messages lie: a GPU for NCCL.
    """

    def __init__(self, runner: TensorParallelRunner, collective: Collective, *, device: torch.device) -> None:
        self._runner, self._collective, self._device = runner, collective, device
        self.num_sequences, self.capacity, self.vocab_ids = runner.num_sequences, runner.capacity, runner.vocab_ids

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._runner.vocab_size

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.forward`."""
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
        self._say(_FORWARD, [columns.shape[0], columns.shape[1]], columns, wanted)
        return self._runner.forward(rows, logit_rows=wanted)

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.move_slots`."""
        check_slots(sequence, sources, targets, num_sequences=self.num_sequences, capacity=self.capacity)
        self._say(_MOVE, [sequence, len(sources)], np.array([*sources, *targets]))
        self._runner.move_slots(sequence, sources, targets)

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
        self._collective.send(torch.from_numpy(np.ascontiguousarray(states, np.float32)).to(self._device))
        self._runner.write_states(sequence, start, states)

    def close(self) -> None:
        """Let the others go."""
        self._say(_STOP, [])

    def _say(self, command: int, head: Sequence[int], *arrays: np.ndarray) -> None:
        words = np.concatenate([np.array(head, np.int64), *(array.astype(np.int64).reshape(-1) for array in arrays)])
        length = torch.tensor([command, len(words)], device=self._device)
        self._collective.send(length)
        if len(words):
            self._collective.send(torch.from_numpy(words).to(self._device))


def follow(runner: TensorParallelRunner, collective: Collective, *, device: torch.device) -> None:
    """Make the calls that the first process makes, until it closes.

    Args:
        runner: This process's share.
        collective: The processes.
        device: Where messages lie.
    """
    while True:
        command, length = collective.send(torch.zeros(2, dtype=torch.int64, device=device)).tolist()
        if command == _STOP:
            return
        received = collective.send(torch.zeros(length, dtype=torch.int64, device=device))
        words = received.cpu().numpy()
        if command == _FORWARD:
            num_rows, num_columns = words[:2].tolist()
            table = words[2 : 2 + num_rows * num_columns].reshape(num_rows, num_columns)
            runner.forward(_rows(table), logit_rows=words[2 + num_rows * num_columns :])
        elif command == _MOVE:
            sequence, count = words[:2].tolist()
            runner.move_slots(sequence, words[2 : 2 + count].tolist(), words[2 + count :].tolist())
        elif command == _READ:
            sequence, start, stop, *layer_ids = words.tolist()
            runner.read_states(sequence, start, stop, layer_ids=layer_ids)
        else:
            sequence, start, *shape = words.tolist()
            states = collective.send(torch.zeros(shape, device=device))
            runner.write_states(sequence, start, states.cpu().numpy())


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
