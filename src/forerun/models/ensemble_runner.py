"""An ensemble as one language model: every member sees every row, and the logits are those of their average."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forerun.core.errors import RequestError
from forerun.core.protocols import LanguageModel
from forerun.core.rows import Rows
from forerun.models.cache_bounds import check_rows, check_slots, check_span
from forerun.nn.law_average import Average, average_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsemblePart:
    """Members that one runner evaluates in one pass.

    Attributes:
        runner: Its cache holds the sequences of the first member, then those of the second, and so on.
        num_members: How many they are.
        num_layers: Layers of each.
    """

    runner: LanguageModel
    num_members: int
    num_layers: int


class EnsembleRunner:
    """Runs the members of an ensemble on the same rows, and averages their laws.

    A row's average does not depend on the rows beside it, so where the members' logits are bitwise independent of the
    width of a pass (int8), the ensemble's are too. Layers, for cached states, are those of the first member, then those
    of the second, and so on.

    Args:
        parts: The members, in order.
        average: How their laws are averaged.
        num_sequences: Sequences of each member's cache.
    """

    def __init__(self, parts: Sequence[EnsemblePart], *, average: Average, num_sequences: int) -> None:
        self.num_sequences = num_sequences
        self.capacity = min(part.runner.capacity for part in parts)
        self.vocab_ids: np.ndarray | None = None
        self._parts = tuple(parts)
        self._average: Average = average
        self._layers = [
            (part.runner, member * num_sequences, layer)
            for part in parts
            for member in range(part.num_members)
            for layer in range(part.num_layers)
        ]

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._parts[0].runner.vocab_size

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """Run rows through every member.

        Args:
            rows: The tokens; their keys and values are written to every member's cache.
            logit_rows: int64 indices of the rows whose logits are wanted; ``None`` for all.

        Returns:
            float32 logits of the averaged law ``[len(logit_rows), vocab_size]``.

        Raises:
            RequestError: A row lies outside the cache or the vocabulary; nothing has been written then.
        """
        check_rows(rows, num_sequences=self.num_sequences, capacity=self.capacity, vocab_size=self.vocab_size)
        logits = np.concatenate([self._logits(part, rows, logit_rows) for part in self._parts])
        return average_rows(logits, average=self._average)

    def _logits(self, part: EnsemblePart, rows: Rows, logit_rows: np.ndarray | None) -> np.ndarray:
        """Return ``[members, rows, vocab]``."""
        members = np.arange(part.num_members)
        repeated = Rows.concatenate(
            [replace(rows, sequences=rows.sequences + member * self.num_sequences) for member in members]
        )
        wanted = None if logit_rows is None else (members[:, None] * len(rows) + logit_rows).ravel()
        num_wanted = len(rows) if logit_rows is None else len(logit_rows)
        return part.runner.forward(repeated, logit_rows=wanted).reshape(part.num_members, num_wanted, self.vocab_size)

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.move_slots`."""
        check_slots(sequence, sources, targets, num_sequences=self.num_sequences, capacity=self.capacity)
        for part in self._parts:
            for member in range(part.num_members):
                part.runner.move_slots(member * self.num_sequences + sequence, sources, targets)

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.read_states`; layers of one call have heads of one shape."""
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        states = [
            runner.read_states(first + sequence, start, stop, layer_ids=[layer])
            for runner, first, layer in (self._layers[index] for index in layer_ids)
        ]
        if len({some.shape for some in states}) > 1:
            raise RequestError(
                f"layer_ids={list(layer_ids)}: belong to members with heads of different shapes; read one at a time"
            )
        return np.concatenate(states, axis=1)

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.write_states`."""
        check_span(sequence, start, start + len(states), num_sequences=self.num_sequences, capacity=self.capacity)
        first = 0
        for part in self._parts:
            for member in range(part.num_members):
                own = states[:, first : first + part.num_layers]
                part.runner.write_states(member * self.num_sequences + sequence, start, own)
                first += part.num_layers
