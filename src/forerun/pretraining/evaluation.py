"""Loss on held-out text: fixed sequences that do not overlap, every token but the first predicted once."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from forerun.data.tokens import TokenStream


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutLoss:
    """A loss and what it is over.

    Attributes:
        loss_nats: Mean over predicted tokens, ends of documents included.
        bits_per_byte: The same in bits over the bytes of the text: comparable between tokenizers.
        num_tokens: Tokens predicted.
    """

    loss_nats: float
    bits_per_byte: float
    num_tokens: int


Laws = Callable[[Tensor], Iterable[Tensor]]
"""Token ids ``[B, T]`` to log-probabilities of the next token ``[B, T, V]`` under each of some laws."""


def held_out_losses(
    laws: Laws, stream: TokenStream, *, num_bytes: int, sequence_tokens: int, batch_sequences: int = 32
) -> list[HeldOutLoss]:
    """Measure laws on the same tokens in one pass; rows in float32, their sum in float64.

    Args:
        laws: The laws, the same number at every call; called without gradient.
        stream: Held-out tokens.
        num_bytes: Bytes of their text in UTF-8.
        sequence_tokens: Tokens predicted in one sequence; the first of them see little context.
        batch_sequences: Sequences of a pass.

    Returns:
        One loss for each law.
    """
    totals: list[float] = []
    for parts in _nats_by_pass(laws, stream, sequence_tokens=sequence_tokens, batch_sequences=batch_sequences):
        sums = [float(nats_BT.double().sum()) for nats_BT in parts]
        totals = [before + more for before, more in zip(totals or [0.0] * len(sums), sums, strict=True)]
    num_tokens = len(stream.ids) - 1
    return [
        HeldOutLoss(loss_nats=total / num_tokens, bits_per_byte=total / math.log(2) / num_bytes, num_tokens=num_tokens)
        for total in totals
    ]


def held_out_token_nats(
    laws: Laws, stream: TokenStream, *, sequence_tokens: int, batch_sequences: int = 32
) -> Float32[np.ndarray, "laws tokens"]:
    """Return the loss of every predicted token under each law, as :func:`held_out_losses` sums them.

    Args:
        laws: The laws, the same number at every call; called without gradient.
        stream: Held-out tokens.
        sequence_tokens: Tokens predicted in one sequence.
        batch_sequences: Sequences of a pass.
    """
    passes = _nats_by_pass(laws, stream, sequence_tokens=sequence_tokens, batch_sequences=batch_sequences)
    return np.concatenate([torch.stack(parts).flatten(1).numpy() for parts in passes], axis=1).astype(np.float32)


def document_starts(stream: TokenStream) -> Int64[np.ndarray, " documents"]:
    """Return where each document's predicted tokens start; the first token of all is not predicted."""
    return np.maximum(stream.starts[:-1] - 1, 0)


def _nats_by_pass(
    laws: Laws, stream: TokenStream, *, sequence_tokens: int, batch_sequences: int
) -> Iterator[list[Tensor]]:
    for ids_BT in _sequences(stream, width=sequence_tokens, batch=batch_sequences):
        with torch.no_grad():
            yield [token_nats(law_BTV, ids_BT[:, 1:]) for law_BTV in laws(ids_BT[:, :-1])]


def token_nats(
    log_probs_BTV: Float[Tensor, "batch tokens vocab"], targets_BT: Int64[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Return the loss of each target under a law."""
    return -log_probs_BTV.gather(-1, targets_BT.unsqueeze(-1)).squeeze(-1)


def _sequences(stream: TokenStream, *, width: int, batch: int) -> Iterator[Tensor]:
    """Yield rows of ``width + 1`` ids that share one id with the next row, and at last a shorter row alone."""
    ids = stream.ids
    num_whole = (len(ids) - 1) // width
    for first in range(0, num_whole, batch):
        starts = range(first * width, min(first + batch, num_whole) * width, width)
        yield torch.from_numpy(np.stack([np.asarray(ids[start : start + width + 1], np.int64) for start in starts]))
    rest = np.asarray(ids[num_whole * width :], np.int64)
    if len(rest) > 1:
        yield torch.from_numpy(rest).unsqueeze(0)
