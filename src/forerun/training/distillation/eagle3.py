"""Training an EAGLE-3 head on the target's own text.

Shape legend: B texts, T columns, E hidden of the head, N layers of the target, F its hidden, V draft vocabulary.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from forerun.models.checkpoint import Checkpoint
from forerun.models.decoder import LayerCache
from forerun.models.eagle3 import Eagle3Config, Eagle3Head
from forerun.models.eagle3_file import save_eagle3
from forerun.training.distillation.batches import TextBatches
from forerun.training.distillation.loss import distillation_loss, greedy_agreement
from forerun.training.distillation.sampling import SampledText
from forerun.training.distillation.trainee import Trainee, write_manifest

MANIFEST_FILE: Final = "training.json"
_RUN_WEIGHT: Final = 0.8
"""Of a run in the loss, against the run before: its token counts only where the tokens before it were right."""
_NEW_STD: Final = 0.02
_PAIR_WEIGHTS: Final = frozenset(f"self_attn.{part}_proj.weight" for part in "qkv")
"""Weights that read a token beside a hidden state, where the target's read a hidden state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Eagle3Batch:
    """What one step trains on. Column c stands for position c + 1 of its text: the first token is read by no head.

    Attributes:
        token_ids: int64 ``[B, T]``, padded at the end.
        features: float32 ``[B, T, N, F]``, the target's hidden states of the tokens *before*.
        where: Places whose next token was sampled from the target: rows and columns.
        columns: As :class:`forerun.training.distillation.batches.DistillBatch`, like ``probs``.
        probs: The target's probabilities.
    """

    token_ids: Tensor
    features: Tensor
    where: tuple[Tensor, Tensor]
    columns: Tensor
    probs: Tensor


class Eagle3Batches:
    """Gives the batch of any step.

    Args:
        batches: Says which texts, and what the target thought of them.
    """

    def __init__(self, batches: TextBatches) -> None:
        self._batches = batches

    def at(self, step: int) -> Eagle3Batch:
        """Return the batch of a step."""
        return self.collate(self._batches.texts_at(step))

    def collate(self, texts: Sequence[SampledText]) -> Eagle3Batch:
        """Put texts side by side; their ``states`` are hidden states."""
        plain = self._batches.collate(texts, rng=random.Random(0), has_states=False)
        token_ids = plain.token_ids[:, 1:]
        features = np.zeros((*token_ids.shape, *texts[0].states.shape[1:]), np.float32)
        for row, text in enumerate(texts):
            features[row, : len(text.states) - 1] = text.states[:-1]
        row, position = plain.where
        has_one_before = position > 0
        return Eagle3Batch(
            token_ids=token_ids,
            features=torch.from_numpy(features),
            where=(row[has_one_before], position[has_one_before] - 1),
            columns=plain.columns[has_one_before],
            probs=plain.probs[has_one_before],
        )


class Eagle3Student(nn.Module):
    """A head in training; it begins as a layer of the target that reads the last of the hidden states.

    Drafting is trained as it is done: the head reads its own hidden states where it will have no others. A text is run
    several times; in the run number s each token reads the state that the run before gave for the token before, as if
    the target had read all but the last s tokens.

    Args:
        checkpoint: The target.
        layer_ids: Its layers; what enters them is read.
        vocab_ids: Target ids that the head can propose, ascending.
        num_runs: Longest draft that is trained.
        seed: Of the first weights that are drawn.

    Reference:
        Li et al. 2025, EAGLE-3 (arXiv 2503.01840), section 3.2 ("training-time test").
    """

    def __init__(
        self, checkpoint: Checkpoint, *, layer_ids: Sequence[int], vocab_ids: np.ndarray, num_runs: int, seed: int
    ) -> None:
        super().__init__()
        target = checkpoint.config
        self.vocab_ids, self.num_runs = vocab_ids, num_runs
        config = Eagle3Config(
            layer=replace(target, num_layers=1, tie_embeddings=False, sliding_window=None),
            layer_ids=tuple(layer_ids),
            target_hidden_size=target.hidden_size,
            draft_vocab_size=len(vocab_ids),
        )
        self.head = Eagle3Head(config)
        tensor, width, generator = checkpoint.tensors.tensor, target.hidden_size, torch.Generator().manual_seed(seed)
        embedding = torch.from_numpy(tensor("embed_tokens.weight"))
        head = embedding if target.tie_embeddings else torch.from_numpy(tensor("lm_head.weight"))
        source = f"layers.{target.num_layers - 1}"
        with torch.no_grad():
            self.head.embed_tokens.weight.copy_(embedding)
            self.head.lm_head.weight.copy_(head[torch.from_numpy(vocab_ids)])
            self.head.norm.weight.copy_(torch.from_numpy(tensor("norm.weight")))
            fc = self.head.fc.weight
            fc.normal_(std=_NEW_STD, generator=generator)
            fc[:, -width:] += torch.eye(width)
            for name, parameter in self.head.midlayer.named_parameters():
                if name == "hidden_norm.weight":
                    parameter.copy_(torch.from_numpy(tensor(f"{source}.input_layernorm.weight")))
                elif name == "input_layernorm.weight":
                    parameter.fill_(1.0)
                elif name in _PAIR_WEIGHTS:
                    parameter[:, :width].normal_(std=_NEW_STD, generator=generator)
                    parameter[:, width:].copy_(torch.from_numpy(tensor(f"{source}.{name}")))
                else:
                    parameter.copy_(torch.from_numpy(tensor(f"{source}.{name}")))
        self.head.embed_tokens.weight.requires_grad = False

    def forward(self, batch: Eagle3Batch) -> list[Tensor]:
        """Return the logits at the places that count, ``[places, V]``, of every run."""
        num_columns = batch.token_ids.shape[1]
        positions_BT = torch.arange(1, num_columns + 1).expand_as(batch.token_ids)
        hidden_BTE, cache, logits = self.head.fuse(batch.features), LayerCache(), []
        for run in range(self.num_runs):
            out_BTE, normed_BTE = self.head(
                batch.token_ids,
                hidden_BTE,
                positions_BT=positions_BT,
                mask=run_mask(num_columns, run),
                cache=cache,
            )
            logits.append(self.head.lm_head(normed_BTE[batch.where]))
            hidden_BTE = torch.cat((torch.zeros_like(out_BTE[:, :1]), out_BTE[:, :-1]), dim=1)
        return logits


def run_mask(num_columns: int, run: int) -> Tensor:
    """Return what each column sees in a run: boolean ``[1, 1, T, (run + 1) * T]``, the earlier runs' columns first.

    The columns that the target has read are those of the first run; of each of the ``run`` columns after them, itself
    the last, the run in which it was drafted.
    """
    columns = torch.arange(num_columns)
    behind = columns[:, None] - columns
    blocks = [behind >= run, *(behind == run - number for number in range(1, run + 1))]
    return torch.cat(blocks, dim=1)[None, None]


def eagle3_trainee(student: Eagle3Student, batches: TextBatches, *, greedy_share: float) -> Trainee:
    """Return what trains a head.

    Args:
        student: The head.
        batches: Of the training texts, with hidden states.
        greedy_share: As for :func:`forerun.training.distillation.loss.distillation_loss`.
    """
    of_heads = Eagle3Batches(batches)

    def measure(texts: Sequence[SampledText]) -> dict[str, Any]:
        parts = [of_heads.collate(texts[first : first + 8]) for first in range(0, len(texts), 8)]
        shares = np.array([_agreement(student, part) for part in parts])
        by_place = np.average(shares, axis=0, weights=[len(part.columns) for part in parts]).tolist()
        return {"held_out_greedy_agreement": by_place[0], "held_out_greedy_agreement_by_place": by_place}

    def write(directory: Path, manifest: dict[str, Any]) -> None:
        save_eagle3(student.head, directory, vocab_ids=student.vocab_ids, embeds=False)
        write_manifest(directory / MANIFEST_FILE, manifest)

    return Trainee(
        module=student,
        batch_at=of_heads.at,
        loss=lambda batch: _loss(student, batch, greedy_share=greedy_share),
        measure=measure,
        write=write,
    )


def _loss(student: Eagle3Student, batch: Eagle3Batch, *, greedy_share: float) -> Tensor:
    """Return the mean distillation loss over the runs, later ones with less weight."""
    losses = [distillation_loss(logits, batch, greedy_share=greedy_share) for logits in student(batch)]
    weights = [_RUN_WEIGHT**run for run in range(len(losses))]
    return sum((weight * loss for weight, loss in zip(weights, losses, strict=True)), torch.zeros(())) / sum(weights)


@torch.no_grad()
def _agreement(student: Eagle3Student, batch: Eagle3Batch) -> list[float]:
    """Return for every run the fraction of places where head and target have the same likeliest token."""
    return [greedy_agreement(logits, batch) for logits in student(batch)]
