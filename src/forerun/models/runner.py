"""The one place that decides which runner runs a model."""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from forerun.core.dtype_choice import DtypeName
from forerun.core.env import cpu_info
from forerun.core.errors import ConfigError
from forerun.core.protocols import LanguageModel
from forerun.models.checkpoint import Checkpoint, Ensemble
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.device import DeviceOptions, affordable_sequences, cache_limit_bytes, sequence_bytes
from forerun.models.device_runner import DeviceRunner
from forerun.models.ensemble_runner import EnsemblePart, EnsembleRunner
from forerun.models.graph_pool import MemoryPact
from forerun.models.int8_runner import Int8Runner
from forerun.models.stacked_decoder import stack_decoders
from forerun.models.torch_runner import TorchRunner
from forerun.models.weight_format import load_decoder


def build_target(
    checkpoint: Checkpoint,
    *,
    dtype: DtypeName,
    num_sequences: int,
    capacity: int,
    device: str = "cpu",
    options: DeviceOptions | None = None,
) -> LanguageModel:
    """Build the runner of a model or of an ensemble, with its whole vocabulary; see :func:`build_runner`.

    Members of an ensemble that follow each other with one shape are stacked and run in one pass; int8 members run one
    after the other, which is faster on a CPU, for their kernels cost little but the weights' own time.
    """
    if (ensemble := checkpoint.ensemble) is not None:
        return _build_ensemble(ensemble, dtype=dtype, num_sequences=num_sequences, capacity=capacity, device=device)
    return build_runner(
        checkpoint.config,
        checkpoint.tensors.tensor,
        dtype=dtype,
        num_sequences=num_sequences,
        capacity=capacity,
        device=device,
        options=options,
    )


def _build_ensemble(
    ensemble: Ensemble, *, dtype: DtypeName, num_sequences: int, capacity: int, device: str
) -> LanguageModel:
    parts: list[EnsemblePart] = []
    for config, group in groupby(ensemble.members, key=lambda member: member.config):
        members = list(group)
        for batch in [[member] for member in members] if dtype == "int8" else [members]:
            if len(batch) > 1:
                runner = _build_stacked(
                    batch, dtype=dtype, num_sequences=num_sequences, capacity=capacity, device=device
                )
            else:
                runner = build_target(
                    batch[0], dtype=dtype, num_sequences=num_sequences, capacity=capacity, device=device
                )
            parts.append(EnsemblePart(runner=runner, num_members=len(batch), num_layers=config.num_layers))
    return EnsembleRunner(parts, average=ensemble.average, num_sequences=num_sequences)


def _build_stacked(
    members: Sequence[Checkpoint], *, dtype: DtypeName, num_sequences: int, capacity: int, device: str
) -> TorchRunner:
    config = members[0].config
    _check_capacity(capacity, config)
    decoders = [
        load_decoder(config, member.tensors.tensor, dtype=dtype, device=torch.device(device)) for member in members
    ]
    return TorchRunner(stack_decoders(decoders), num_sequences=len(members) * num_sequences, capacity=capacity)


def build_runner(
    config: DecoderConfig,
    tensor: Callable[[str], np.ndarray],
    *,
    dtype: DtypeName,
    num_sequences: int,
    capacity: int,
    vocab_ids: np.ndarray | None = None,
    num_levels: int = 2,
    embedding_of: LanguageModel | None = None,
    device: str = "cpu",
    options: DeviceOptions | None = None,
) -> LanguageModel:
    """Build the runner of a model.

    Args:
        config: Shape of the model.
        tensor: Gives a weight by its name in ``Decoder.state_dict()`` as float32.
        dtype: Format of the weights; ``int8`` chooses :class:`Int8Runner`, all others :class:`TorchRunner`
            (:func:`forerun.core.dtype_choice.choose_dtype` decides ``auto``).
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence; at most the context the model was trained for.
        vocab_ids: Target ids of the rows of a reduced output head, ascending; ``None`` for the whole vocabulary.
        num_levels: int8 only: 2 for a target, 1 for a draft.
        embedding_of: A runner of a model with the same embedding, to hold it in memory once (int8 only).
        device: ``cpu``, or a CUDA device; int8 is for a CPU.
        options: For passes of fixed shape, by :class:`DeviceRunner`, on their own device; it may hold fewer sequences
            than asked for where memory is short. ``None`` for the other runners.

    Raises:
        ConfigError: The combination can't be run as asked.
    """
    _check_capacity(capacity, config)
    if options is not None:
        return _build_device_runner(
            config,
            tensor,
            dtype=dtype,
            num_sequences=num_sequences,
            capacity=capacity,
            vocab_ids=vocab_ids,
            options=options,
        )
    if dtype != "int8":
        decoder = load_decoder(config, tensor, dtype=dtype, device=torch.device(device))
        return TorchRunner(decoder, num_sequences=num_sequences, capacity=capacity, vocab_ids=vocab_ids)
    if device != "cpu":
        raise ConfigError(f'dtype="int8": its kernels run on a CPU, not on {device}; choose "bfloat16" or "float32"')
    if not cpu_info().has_int8_dot:
        raise ConfigError(
            'dtype="int8": this CPU has neither VNNI nor AMX: int8 sums could saturate; choose "float32" or "auto"'
        )
    return Int8Runner(
        config,
        tensor,
        num_sequences=num_sequences,
        capacity=capacity,
        vocab_ids=vocab_ids,
        embedding=embedding_of.embedding if isinstance(embedding_of, Int8Runner) else None,
        num_levels=num_levels,
    )


def _build_device_runner(
    config: DecoderConfig,
    tensor: Callable[[str], np.ndarray],
    *,
    dtype: DtypeName,
    num_sequences: int,
    capacity: int,
    vocab_ids: np.ndarray | None,
    options: DeviceOptions,
) -> DeviceRunner:
    if dtype == "int8":
        raise ConfigError(
            'dtype="int8": its kernels have no passes of fixed shape; choose "bfloat16" or "float32", or graphs="auto" '
            "on a CPU"
        )
    decoder = load_decoder(config, tensor, dtype=dtype, device=options.device)
    return run_on_device(decoder, options, num_sequences=num_sequences, capacity=capacity, vocab_ids=vocab_ids)


def run_on_device(
    decoder: Decoder,
    options: DeviceOptions,
    *,
    num_sequences: int,
    capacity: int,
    vocab_ids: np.ndarray | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
    pact: MemoryPact | None = None,
    agree: Callable[[int], int] = int,
) -> DeviceRunner:
    """Build the runner of a decoder that is on its device, with as many sequences as memory allows.

    Args:
        decoder: The model, or a share of one.
        options: Of the device.
        num_sequences: Sequences wanted.
        capacity: Slots of each.
        vocab_ids: As for :class:`DeviceRunner`.
        head: As for :class:`DeviceRunner`.
        pact: As for :class:`DeviceRunner`.
        agree: From what this process can hold to what all that share the model hold.

    Raises:
        ConfigError: Not even one sequence fits.
    """
    limit = cache_limit_bytes(options)
    if limit is not None:
        num_slots = capacity + options.num_tree_slots + 1
        each = sequence_bytes(decoder.config, num_slots=num_slots, item_bytes=decoder.lm_head.weight.element_size())
        num_sequences = affordable_sequences(wanted=num_sequences, bytes_each=each, cache_bytes=limit)
    return DeviceRunner(
        decoder,
        num_sequences=agree(num_sequences),
        capacity=capacity,
        vocab_ids=vocab_ids,
        recorder=options.recorder,
        backend=options.backend,
        num_tree_slots=options.num_tree_slots,
        head=head,
        pact=pact,
    )


def _check_capacity(capacity: int, config: DecoderConfig) -> None:
    if capacity > config.max_len:
        raise ConfigError(
            f"capacity={capacity}: the model was trained for up to {config.max_len} tokens; ask for at most that many"
        )
