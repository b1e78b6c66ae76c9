"""The runner of a draft, whatever kind it is."""

import torch

from forerun.core.dtype_choice import DtypeName
from forerun.core.errors import ConfigError
from forerun.core.protocols import LanguageModel
from forerun.models.device import DeviceOptions
from forerun.models.device_head import DeviceHead
from forerun.models.device_runner import DeviceRunner
from forerun.models.draft import Draft
from forerun.models.eagle3_runner import Eagle3Runner, fill_head
from forerun.models.runner import build_runner
from forerun.models.weight_format import fitting_format
from forerun.nn.int8_module import Int8Module


def build_draft(
    draft: Draft,
    *,
    dtype: DtypeName,
    num_sequences: int,
    capacity: int,
    embedding_of: LanguageModel | None = None,
) -> LanguageModel:
    """Build the runner of a draft on a CPU, with passes of any shape.

    Args:
        draft: From :func:`forerun.models.draft.load_draft`.
        dtype: Format of the weights; of an EAGLE-3 head int8, float32 or bfloat16, for others the one that the device
            multiplies best.
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence.
        embedding_of: The target's runner, to hold a borrowed embedding in memory once; ``None`` where it is in another
            process.

    Raises:
        ConfigError: The draft can't be run as asked.
    """
    if draft.eagle3 is not None:
        is_wide = dtype != "bfloat16"
        head = fill_head(
            draft.eagle3,
            draft.tensor,
            dtype=torch.float32 if is_wide else torch.bfloat16,
            build_layer=Int8Module if dtype == "int8" else None,
        )
        return Eagle3Runner(head, num_sequences=num_sequences, capacity=capacity, vocab_ids=draft.vocab_ids)
    return build_runner(
        draft.config,
        draft.tensor,
        dtype=dtype,
        num_sequences=num_sequences,
        capacity=capacity,
        vocab_ids=draft.vocab_ids,
        num_levels=1,
        embedding_of=embedding_of if draft.borrows_embedding else None,
    )


def build_device_draft(
    draft: Draft, *, dtype: DtypeName, num_sequences: int, capacity: int, options: DeviceOptions
) -> DeviceRunner | DeviceHead:
    """Build the runner of a draft in passes of fixed shape.

    Args:
        draft: As for :func:`build_draft`.
        dtype: Format of the target's weights; the draft takes it where its shapes allow, an EAGLE-3 head float32 or
            bfloat16.
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence.
        options: Of its device.

    Raises:
        ConfigError: The draft can't be run as asked, or memory holds fewer sequences.
    """
    sizes = {"num_sequences": num_sequences, "capacity": capacity, "vocab_ids": draft.vocab_ids}
    if draft.eagle3 is not None:
        kind = torch.float32 if dtype == "float32" else torch.bfloat16
        head = fill_head(draft.eagle3, draft.tensor, dtype=kind, device=options.device)
        return DeviceHead(head, recorder=options.recorder, num_tree_slots=options.num_tree_slots, **sizes)
    runner = build_runner(
        draft.config,
        draft.tensor,
        dtype=fitting_format(draft.config, dtype, options.device),
        options=options,
        **sizes,
    )
    assert isinstance(runner, DeviceRunner), "options are for passes of fixed shape"
    if runner.num_sequences < num_sequences:
        raise ConfigError(
            f"the draft's keys and values fit {runner.num_sequences} of {num_sequences} sequences: set a smaller "
            "max_num_seqs or max_model_len, or draft_device"
        )
    return runner
