"""What is trained: a draft of one kind or another, with all that training it asks for."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from forerun.training.distillation.sampling import SampledText


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainee:
    """A draft in training.

    Attributes:
        module: Its parameters.
        batch_at: Gives the batch of a step.
        loss: Gives the loss of a batch.
        measure: Gives what is known of it on held-out texts: entries of the manifest, the share of places where it has
            the target's likeliest token first, under ``held_out_greedy_agreement``.
        write: Writes it to a directory, with its manifest.
    """

    module: nn.Module
    batch_at: Callable[[int], Any]
    loss: Callable[[Any], Tensor]
    measure: Callable[[Sequence[SampledText]], dict[str, Any]]
    write: Callable[[Path, dict[str, Any]], None]


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write how a draft was made."""
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
