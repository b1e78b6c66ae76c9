"""One model over several devices: each holds a share of the heads, of the MLP and of the vocabulary.

Query, key, value, gate and up projections are split by output (whole heads together), the projections back to the
residual stream by input, and what those give is summed over the devices, twice a layer. The embedding and the norms are
whole everywhere; each device computes the logits of a part of the vocabulary, and gets those of the others. So a share
is a decoder like any other, run as any other is, and every process chooses the same tokens. The law is that of one
device, up to the rounding of a sum in parts (and, with weights of 8 or 4 bits, of scales over a part of the inputs).

Every process makes the same calls (:class:`TensorParallelRunner`). Where one process alone knows what comes next, it
leads and the others follow (:mod:`forerun.models.leading_runner`).

A pass that memory is too short for in one process is given up by all (:class:`SharedMemoryPact`).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import linear, pad

from forerun.core.dtype_choice import DtypeName
from forerun.core.protocols import Pending
from forerun.core.rows import Rows
from forerun.core.selection import Selection
from forerun.models.decoder import Decoder, DecoderLayer
from forerun.models.device_runner import DeviceRunner
from forerun.models.draft_laws import DraftLaws
from forerun.models.graph_pool import Recorder, is_out_of_memory
from forerun.models.model_share import ModelSplit
from forerun.models.weight_format import load_decoder


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


class SharedMemoryPact:
    """What processes do where memory is short in one of them: each keeps on exchanging, then all give the pass up.

    A process that raised in the middle of a pass would leave the others waiting for its sums. So it adds zeros for what
    it can't compute, and when the pass is through, says so. This is for passes that take memory: a recorded one has it.

    Args:
        collective: The processes.
    """

    def __init__(self, collective: Collective) -> None:
        self._collective = collective
        self._has_failed = False

    def summed(self, work: Callable[[], Tensor], like: Tensor) -> Tensor:
        """As :meth:`forerun.models.graph_pool.MemoryPact.summed`."""
        found = self.attempt(work)
        return self._collective.sum(torch.zeros_like(like)) if found is None else found

    def attempt(self, work: Callable[[], Tensor]) -> Tensor | None:
        """Return what work gives that exchanges nothing, or only at its end; ``None`` where memory is short for it."""
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        self._has_failed = True
        return None

    def any_failed(self) -> bool:
        """As :meth:`forerun.models.graph_pool.MemoryPact.any_failed`."""
        told = self._collective.gather(torch.tensor([int(self._has_failed)]))
        self._has_failed = False
        return any(int(one) for one in told)


class _SharedHead:
    """From last hidden states to the logits of every process's columns.

    Args:
        weight: The whole head; this process's part is copied out of it.
        ids: Rows of the head that are columns, ascending.
        counts: Columns of each process.
        collective: The processes.
        pact: Theirs.
    """

    def __init__(
        self,
        weight: Tensor,
        ids: np.ndarray,
        counts: Sequence[int],
        *,
        collective: Collective,
        pact: SharedMemoryPact,
    ) -> None:
        rank = collective.rank
        own = ids[sum(counts[:rank]) : sum(counts[: rank + 1])]
        self._weight = weight.detach()[torch.from_numpy(own).to(weight.device)]
        self._counts, self._collective, self._pact = tuple(counts), collective, pact

    def __call__(self, hidden: Tensor) -> Tensor:
        most = max(self._counts)
        own = self._pact.attempt(lambda: pad(linear(hidden, self._weight), (0, most - len(self._weight))))
        parts = self._collective.gather(hidden.new_zeros(*hidden.shape[:-1], most) if own is None else own)
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
        build: Makes the runner of a share, of its decoder, ``head`` and ``pact``; of the same cache in every process.
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
        build: Callable[..., DeviceRunner],
        *,
        collective: Collective,
        vocab_ids: np.ndarray | None = None,
        dtype: DtypeName = "float32",
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a device is a value)
    ) -> None:
        decoder = load_share(split, tensor, collective, dtype=dtype, device=device)
        ids = np.arange(split.config.vocab_size) if vocab_ids is None else vocab_ids
        pact, weight = SharedMemoryPact(collective), decoder.lm_head.weight
        head = _SharedHead(weight, ids, split.columns(len(ids)), collective=collective, pact=pact)
        decoder.lm_head.weight = decoder.embed_tokens.weight  # the share has its part; the whole may go
        self._own = build(decoder, head=head, pact=pact)
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

    def launch(
        self, rows: Rows, selection: Selection | None = None, *, logit_rows: np.ndarray | None = None
    ) -> Pending:
        """As :meth:`forerun.core.protocols.TokenModel.launch`."""
        return self._own.launch(rows, selection, logit_rows=logit_rows)

    @property
    def recorder(self) -> Recorder:
        """Launches the passes of this process's share."""
        return self._own.recorder

    def leave_choices(self) -> None:
        """Choose no tokens: another process's answers are read."""
        self._own.chooses = False

    def record_anew(self) -> None:
        """As :meth:`forerun.models.device_runner.DeviceRunner.record_anew`; all processes do it at the same place."""
        self._own.record_anew()

    def verify_by(self, laws: DraftLaws) -> None:
        """As :meth:`forerun.models.device_runner.DeviceRunner.verify_by`, in the process that chooses."""
        self._own.verify_by(laws)

    @property
    def kept(self) -> DeviceRunner:
        """This process's share, which has the whole residual stream: what it keeps of that is all there is."""
        return self._own

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
