"""Training a draft made of layers of the target: its loss, its measure, its file."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from forerun.models.draft import DRAFT_FILE, MANIFEST_FILE
from forerun.nn.int8_linear import quantize_weight
from forerun.training.distillation.batches import TextBatches
from forerun.training.distillation.loss import distillation_loss, greedy_agreement
from forerun.training.distillation.sampling import SampledText
from forerun.training.distillation.student import Student
from forerun.training.distillation.trainee import Trainee, write_manifest


def layers_trainee(student: Student, batches: TextBatches, *, greedy_share: float) -> Trainee:
    """Return what trains a draft made of layers.

    Args:
        student: The draft.
        batches: Of the training texts.
        greedy_share: As for :func:`forerun.training.distillation.loss.distillation_loss`.
    """

    def measure(texts: Sequence[SampledText]) -> dict[str, Any]:
        return {
            "num_layers": len(student.layer_ids),
            "state_layer_ids": list(student.layer_ids),
            "held_out_greedy_agreement": _agreement(student, batches, texts, has_states=True),
            "held_out_greedy_agreement_without_states": _agreement(student, batches, texts, has_states=False),
        }

    return Trainee(
        module=student,
        batch_at=batches.at,
        loss=lambda batch: distillation_loss(student(batch), batch, greedy_share=greedy_share),
        measure=measure,
        write=partial(_write, student),
    )


def _agreement(student: Student, batches: TextBatches, texts: Sequence[SampledText], *, has_states: bool) -> float:
    rng = random.Random(0)
    same, total = 0.0, 0
    for first in range(0, len(texts), 8):
        batch = batches.collate(texts[first : first + 8], rng=rng, has_states=has_states)
        with torch.no_grad():
            same += greedy_agreement(student(batch), batch) * batch.num_tokens
        total += batch.num_tokens
    return same / total


def _write(student: Student, directory: Path, manifest: dict[str, Any]) -> None:
    """Write the trained weights, matrices as int8 with a scale per row, as they will run.

    Embedding and head are the target's own and are not written.
    """
    tensors: dict[str, np.ndarray] = {"vocab_ids": student.vocab_ids.astype(np.int32)}
    for name in student.trained_names():
        values = student.decoder.get_parameter(name).detach().numpy()
        if values.ndim > 1:
            tensors[name], tensors[f"{name}.scale"] = quantize_weight(values)
        else:
            tensors[name] = values
    directory.mkdir(parents=True, exist_ok=True)
    partial_file = directory / f"{DRAFT_FILE}.partial"
    save_file(tensors, partial_file)
    partial_file.rename(directory / DRAFT_FILE)
    write_manifest(directory / MANIFEST_FILE, manifest)
