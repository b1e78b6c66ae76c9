"""Batches of sampled texts, shuffled by epoch and grouped by length so that little is padded.

A draft that reads the target's keys and values meets them as in decoding: rounds of a few tokens, in which it has only
its own for the tokens of the round, and the target's for all before. Each text is cut into such rounds at random. Some
batches have no states at all, for the draft starts before the target has read the prompt.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from forerun.training.distillation.sampling import SampledText


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillBatch:
    """What one step trains on. Shape legend: B texts, T columns, S positions of states, N places that count.

    Attributes:
        token_ids: int64 ``[B, T]``, padded at the end.
        positions: int64 ``[B, T]``, rotary.
        states: float32 ``[B, S, num_layers, 2, num_kv_heads, head_dim]``, the target's keys and values.
        mask: bool ``[B, 1, T, S + T]``, which states and which columns a column may attend to.
        where: Rows and columns of the N places whose next token was sampled from the target.
        columns: int64 ``[N, top]``, the target's likeliest tokens as columns of the draft's head (0 if it lacks them).
        probs: float32 ``[N, top]``, their probabilities, 0 where the draft's head lacks them.
    """

    token_ids: Tensor
    positions: Tensor
    states: Tensor
    mask: Tensor
    where: tuple[Tensor, Tensor]
    columns: Tensor
    probs: Tensor

    @property
    def num_tokens(self) -> int:
        """Places that count."""
        return self.columns.shape[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundConfig:
    """How texts are cut into rounds.

    Attributes:
        max_tokens: Longest round; lengths are uniform from 1.
        own_share: Fraction of the batches without states.
    """

    max_tokens: int = 10
    own_share: float = 0.1


class TextBatches:
    """Gives the batch of any step.

    Args:
        texts: Training texts.
        vocab_ids: Target ids of the draft's head, ascending.
        vocab_size: Size of the target's vocabulary.
        batch_tokens: Padded sampled tokens per batch, about.
        rounds: How texts are cut.
        seed: Of the shuffles and cuts.
    """

    def __init__(
        self,
        texts: list[SampledText],
        *,
        vocab_ids: np.ndarray,
        vocab_size: int,
        batch_tokens: int,
        rounds: RoundConfig,
        seed: int,
    ) -> None:
        self._texts, self._seed, self._batch_tokens, self._rounds = texts, seed, batch_tokens, rounds
        self._column_of = np.full(vocab_size, -1, np.int64)
        self._column_of[vocab_ids] = np.arange(len(vocab_ids))
        self._epochs: dict[int, list[list[int]]] = {}
        self.batches_per_epoch = len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch as lists of text indices. Each epoch has as many as the first, or one less."""
        if epoch not in self._epochs:
            rng = random.Random(f"{self._seed}/{epoch}")
            lengths = [len(text.tokens) for text in self._texts]
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
        rng = random.Random(f"{self._seed}/step {step}")
        return self.collate(self.texts_at(step), rng=rng, has_states=rng.random() >= self._rounds.own_share)

    def texts_at(self, step: int) -> list[SampledText]:
        """Return the texts of a step's batch."""
        epoch, place = divmod(step, self.batches_per_epoch)
        batches = self._epoch(epoch)
        return [self._texts[index] for index in batches[place % len(batches)]]

    def collate(self, texts: Sequence[SampledText], *, rng: random.Random, has_states: bool) -> DistillBatch:
        """Put texts side by side.

        Args:
            texts: With states they are read from the last token of the prompt on; without, whole.
            rng: Cuts the rounds.
            has_states: Whether the target's keys and values are there.
        """
        firsts = [len(text.prompt) - 1 if has_states else 0 for text in texts]
        stops = [len(text.prompt) + len(text.tokens) - 1 for text in texts]
        num_columns = max(stop - first for first, stop in zip(firsts, stops, strict=True))
        num_states = max(stops) if has_states else 0
        token_ids = np.zeros((len(texts), num_columns), np.int64)
        positions = np.asarray(firsts)[:, None] + np.arange(num_columns)
        states = np.zeros((len(texts), num_states, *texts[0].states.shape[1:]), np.float32)
        mask = np.zeros((len(texts), 1, num_columns, num_states + num_columns), np.bool_)
        mask[:, :, :, num_states] = True  # a padding column must see something, or its softmax is not a number
        rows: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for row, (text, first, stop) in enumerate(zip(texts, firsts, stops, strict=True)):
            token_ids[row, : stop - first] = (text.prompt + text.tokens)[first:stop]
            states[row, : min(num_states, stop)] = text.states[: min(num_states, stop)]
            _open(mask[row, 0], self._cuts(stop - first, rng) if has_states else [0, stop], first, num_states)
            rows.append(np.full(len(text.tokens), row))
            places.append(np.arange(len(text.prompt) - 1 - first, stop - first))
        columns = self._column_of[np.concatenate([text.top_ids for text in texts])]
        probs = np.exp(np.concatenate([text.top_logprobs for text in texts]).astype(np.float32))
        return DistillBatch(
            token_ids=torch.from_numpy(token_ids),
            positions=torch.from_numpy(positions),
            states=torch.from_numpy(states),
            mask=torch.from_numpy(mask),
            where=(torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(places))),
            columns=torch.from_numpy(np.maximum(columns, 0)),
            probs=torch.from_numpy(np.where(columns >= 0, probs, 0.0)),
        )

    def _cuts(self, num_columns: int, rng: random.Random) -> list[int]:
        """Return where rounds begin, and the end."""
        cuts = [0]
        while cuts[-1] < num_columns:
            cuts.append(min(num_columns, cuts[-1] + rng.randint(1, self._rounds.max_tokens)))
        return cuts


def _open(mask: np.ndarray, cuts: Sequence[int], first: int, num_states: int) -> None:
    """Let the columns of each round see the states before the round, and the round up to themselves.

    Args:
        mask: bool ``[T, S + T]``, changed.
        cuts: Columns at which rounds begin, and the end.
        first: Position of column 0.
        num_states: S.
    """
    mask[: cuts[-1], num_states] = False
    for start, stop in pairwise(cuts):
        mask[start:stop, : min(num_states, first + start)] = True
        own = np.tril(np.ones((stop - start, stop - start), np.bool_))
        mask[start:stop, num_states + start : num_states + stop] = own
