"""Batches of sampled texts, shuffled by epoch and grouped by length so that little is padded."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forerun.training.distillation.sampling import SampledText


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillBatch:
    """What one step trains on.

    Attributes:
        token_ids: int64 ``[B, T]``, padded at the end.
        where: Rows and columns of the N places whose next token was sampled from the target.
        columns: int64 ``[N, top]``, the target's likeliest tokens as columns of the draft's head (0 if it lacks them).
        probs: float32 ``[N, top]``, their probabilities, 0 where the draft's head lacks them.
    """

    token_ids: Tensor
    where: tuple[Tensor, Tensor]
    columns: Tensor
    probs: Tensor

    @property
    def num_tokens(self) -> int:
        """Places that count."""
        return self.columns.shape[0]


class TextBatches:
    """Gives the batch of any step.

    Args:
        texts: Training texts.
        vocab_ids: Target ids of the draft's head, ascending.
        vocab_size: Size of the target's vocabulary.
        batch_tokens: Padded tokens per batch, about.
        seed: Of the shuffles.
    """

    def __init__(
        self, texts: list[SampledText], *, vocab_ids: np.ndarray, vocab_size: int, batch_tokens: int, seed: int
    ) -> None:
        self._texts, self._seed, self._batch_tokens = texts, seed, batch_tokens
        self._column_of = np.full(vocab_size, -1, np.int64)
        self._column_of[vocab_ids] = np.arange(len(vocab_ids))
        self._epochs: dict[int, list[list[int]]] = {}
        self.batches_per_epoch = len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch as lists of text indices. Each epoch has as many as the first, or one less."""
        if epoch not in self._epochs:
            rng = random.Random(f"{self._seed}/{epoch}")
            lengths = [len(text.prompt) + len(text.tokens) for text in self._texts]
            order = sorted(range(len(self._texts)), key=lambda index: lengths[index] + rng.random() * 16)
            batches: list[list[int]] = [[]]
            for index in order:
                if batches[-1] and (len(batches[-1]) + 1) * (lengths[index]) > self._batch_tokens:
                    batches.append([])
                batches[-1].append(index)
            rng.shuffle(batches)
            self._epochs = {epoch: batches}
        return self._epochs[epoch]

    def at(self, step: int) -> DistillBatch:
        """Return the batch of a step."""
        epoch, place = divmod(step, self.batches_per_epoch)
        batches = self._epoch(epoch)
        return self.collate([self._texts[index] for index in batches[place % len(batches)]])

    def collate(self, texts: list[SampledText]) -> DistillBatch:
        """Put texts side by side."""
        longest = max(len(text.prompt) + len(text.tokens) for text in texts) - 1
        token_ids = np.zeros((len(texts), longest), np.int64)
        rows, places = [], []
        for row, text in enumerate(texts):
            whole = (text.prompt + text.tokens)[:-1]
            token_ids[row, : len(whole)] = whole
            rows.append(np.full(len(text.tokens), row))
            places.append(np.arange(len(text.prompt) - 1, len(whole)))
        columns = self._column_of[np.concatenate([text.top_ids for text in texts])]
        probs = np.exp(np.concatenate([text.top_logprobs for text in texts]).astype(np.float32))
        return DistillBatch(
            token_ids=torch.from_numpy(token_ids),
            where=(torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(places))),
            columns=torch.from_numpy(np.maximum(columns, 0)),
            probs=torch.from_numpy(np.where(columns >= 0, probs, 0.0)),
        )
