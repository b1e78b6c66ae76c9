"""The runner of a draft, whatever kind it is."""

import torch

from forerun.core.dtype_choice import DtypeName
from forerun.core.protocols import LanguageModel
from forerun.models.draft import Draft
from forerun.models.eagle3_runner import Eagle3Runner, fill_head
from forerun.models.runner import build_runner
from forerun.nn.int8_module import Int8Module


def build_draft(
    draft: Draft,
    *,
    dtype: DtypeName,
    num_sequences: int,
    capacity: int,
    embedding_of: LanguageModel | None = None,
    device: str = "cpu",
) -> LanguageModel:
    """Build the runner of a draft, with passes of any shape.

    Args:
        draft: From :func:`forerun.models.draft.load_draft`.
        dtype: Format of the weights; of an EAGLE-3 head int8, float32 or bfloat16, for others the one that the device
            multiplies best.
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence.
        embedding_of: The target's runner, to hold a borrowed embedding in memory once; ``None`` where it is in another
            process.
        device: Where it runs.

    Raises:
        ConfigError: The draft can't be run as asked.
    """
    if draft.eagle3 is not None:
        is_wide = dtype == "float32" or (dtype != "bfloat16" and device == "cpu")
        head = fill_head(
            draft.eagle3,
            draft.tensor,
            dtype=torch.float32 if is_wide else torch.bfloat16,
            device=device,
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
        device=device,
    )
