"""Training batches as a function of the step: documents in a new order each epoch, cut into sequences, shuffled."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.data.tokens import ReorderedTokens, TokenStream


def steps_per_epoch(num_tokens: int, *, sequence_tokens: int, batch_sequences: int) -> int:
    """Return the whole batches of a pass over some tokens.

    Raises:
        ConfigError: The tokens do not fill one batch.
    """
    steps = (num_tokens - 1) // sequence_tokens // batch_sequences
    if steps == 0:
        raise ConfigError(
            f"{num_tokens} training tokens do not fill a batch of {batch_sequences} sequences of {sequence_tokens}; "
            "give more text, or make the batch smaller"
        )
    return steps


class EpochBatches:
    """Batches of an epoch after the other.

    In every epoch the documents are put in a new order, end to end; the stream is cut into sequences that overlap by
    one token, and these are drawn without replacement. What is left after the last whole batch is not used in that
    epoch; it is another part in the next.

    Args:
        stream: The training tokens.
        sequence_tokens: Tokens predicted in one sequence.
        batch_sequences: Sequences of a batch.
        seed: Root of the orders.

    Raises:
        ConfigError: The tokens do not fill one batch.
    """

    def __init__(self, stream: TokenStream, *, sequence_tokens: int, batch_sequences: int, seed: int) -> None:
        self._stream, self._seed = stream, seed
        self._sequence_tokens, self._batch_sequences = sequence_tokens, batch_sequences
        self._num_sequences = (len(stream.ids) - 1) // sequence_tokens
        self.steps_per_epoch = steps_per_epoch(
            len(stream.ids), sequence_tokens=sequence_tokens, batch_sequences=batch_sequences
        )
        self._epoch: tuple[int, ReorderedTokens, Int64[np.ndarray, " sequences"]] | None = None

    def at(self, step: int) -> Int64[Tensor, "sequences tokens"]:
        """Return the batch of a step: rows of ``sequence_tokens + 1`` ids.

        Each id of a row but the last is an input, each but the first a target.
        """
        return self.rows(step * self._batch_sequences, (step + 1) * self._batch_sequences)

    def rows(self, start: int, stop: int) -> Int64[Tensor, "sequences tokens"]:
        """Return rows [start, stop) of all batches, one after the other; at least one."""
        width = self._sequence_tokens
        rows: list[np.ndarray] = []
        for row in range(start, stop):
            epoch, place = divmod(row, self.steps_per_epoch * self._batch_sequences)
            tokens, order = self._order(epoch)
            number = int(order[place])
            rows.append(tokens.span(number * width, (number + 1) * width + 1))
        return torch.from_numpy(np.stack(rows))

    def _order(self, epoch: int) -> tuple[ReorderedTokens, Int64[np.ndarray, " sequences"]]:
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
            documents = rng.permutation(self._stream.num_documents)
            self._epoch = (epoch, ReorderedTokens(self._stream, documents), rng.permutation(self._num_sequences))
        return self._epoch[1], self._epoch[2]
