"""Language models whose logits are a known function of the exact text that a row sees.

The cache holds tokens where a real one holds keys and values, so a wrong slot, prefix length, ancestor, position or
roll-back makes a row see another text: it is refused if the positions do not follow each other, and changes the logits
in any case.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from forerun.core.rows import Rows
from forerun.models.cache_bounds import check_rows, check_slots

Law = Callable[[tuple[int, ...]], np.ndarray]
"""Gives the logits over the whole vocabulary after a text."""

_NUM_TEXTS = 4093


def history_law(vocab_size: int, *, seed: int, spread: float = 2.0) -> Law:
    """Logits that look random, and depend on every token of the text."""
    table = (spread * np.random.default_rng(seed).standard_normal((_NUM_TEXTS, vocab_size))).astype(np.float32)
    return lambda text: table[zlib.crc32(np.array(text, np.int64).tobytes()) % _NUM_TEXTS]


def markov_law(vocab_size: int, *, seed: int, spread: float = 1.0) -> Law:
    """Logits that depend on the last token only, so that the law of whole outputs can be summed up."""
    table = (spread * np.random.default_rng(seed).standard_normal((vocab_size, vocab_size))).astype(np.float32)
    return lambda text: table[text[-1]]


def mixture_law(*parts: tuple[float, Law]) -> Law:
    """Weighted sum of logits: a draft that is nearly right, or a target that repeats itself."""

    def law(text: tuple[int, ...]) -> np.ndarray:
        return np.sum([np.float32(weight) * part(text) for weight, part in parts], axis=0, dtype=np.float32)

    return law


class SimulatedModel:
    """A ``LanguageModel`` with a given law.

    Args:
        law: Gives the logits after a text.
        vocab_size: Of the target.
        num_sequences: Sequences of the cache.
        capacity: Slots per sequence.
        vocab_ids: Target ids of a reduced vocabulary.
    """

    def __init__(
        self,
        law: Law,
        *,
        vocab_size: int,
        num_sequences: int = 1,
        capacity: int = 64,
        vocab_ids: np.ndarray | None = None,
    ) -> None:
        self.law, self.num_sequences, self.capacity, self.vocab_ids = law, num_sequences, capacity, vocab_ids
        self._num_ids = vocab_size
        self._tokens = np.full((num_sequences, capacity), -1, np.int64)
        self._positions = np.full((num_sequences, capacity), -1, np.int64)
        self.texts: list[tuple[int, ...]] = []
        """What each row of the last pass saw, the token itself last."""
        self.num_passes = 0
        self._num_kept_layers = 0

    @property
    def vocab_size(self) -> int:
        return self._num_ids if self.vocab_ids is None else len(self.vocab_ids)

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        check_rows(rows, num_sequences=self.num_sequences, capacity=self.capacity, vocab_size=self._num_ids)
        assert (np.diff(rows.sequences) >= 0).all(), "sequences must ascend"
        assert len(set(zip(rows.sequences.tolist(), rows.slots.tolist(), strict=True))) == len(rows), "one slot twice"
        places = self._places(rows.sequences, rows.slots)
        self._tokens[places], self._positions[places] = rows.token_ids, rows.positions
        self.texts = [self._text(rows, row) for row in range(len(rows))]
        self.num_passes += 1
        wanted = range(len(rows)) if logit_rows is None else logit_rows.tolist()
        logits = np.array([self.law(self.texts[row]) for row in wanted], np.float32).reshape(-1, self._num_ids)
        return logits if self.vocab_ids is None else logits[:, self.vocab_ids]

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        check_slots(sequence, sources, targets, num_sequences=self.num_sequences, capacity=self.capacity)
        read, written = (self._places(sequence, np.array(slots, np.int64)) for slots in (sources, targets))
        for array in (self._tokens, self._positions):
            array[written] = array[read]

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        places = self._places(sequence, np.arange(start, stop))
        held = np.stack((self._tokens[places], self._positions[places]), axis=1)
        assert (held >= 0).all(), "states were asked for that no pass has written"
        return np.repeat(held[:, None, :, None, None], len(layer_ids), axis=1).astype(np.float32)

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        stop = start + len(states)
        assert (states[:, 0, 1, 0, 0] == np.arange(start, stop)).all(), "states of other positions"
        places = self._places(sequence, np.arange(start, stop))
        self._tokens[places], self._positions[places] = states[:, 0, 0, 0, 0], np.arange(start, stop)

    def keep_features(self, layer_ids: Sequence[int]) -> None:
        self._num_kept_layers = len(layer_ids)

    def read_features(self, sequence: int, start: int, stop: int) -> np.ndarray:
        """A hidden state is the text up to its token, the same in each layer."""
        tokens = self._tokens[self._places(sequence, np.arange(stop))]
        texts = np.full((stop - start, self.capacity), -1, np.float32)
        for row, slot in enumerate(range(start, stop)):
            texts[row, : slot + 1] = tokens[: slot + 1]
        return np.repeat(texts[:, None], self._num_kept_layers, axis=1)

    def write_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        expected = self.read_features(sequence, start, start + len(features))
        assert (features == expected).all(), "keys and values of one text, hidden states of another"

    def _places(self, sequences: np.ndarray | int, slots: np.ndarray) -> tuple[np.ndarray | int, np.ndarray]:
        """Return where slots lie in the arrays."""
        return sequences, slots

    def _text(self, rows: Rows, row: int) -> tuple[int, ...]:
        seen = [*range(rows.lengths[row]), *rows.ancestors[row, : rows.num_ancestors[row]].tolist()]
        assert seen == sorted(set(seen)), "ancestors must ascend, beyond the prefix"
        assert seen[-1] == rows.slots[row], "a row must see itself, last"
        sequence = rows.sequences[row]
        places = self._places(sequence, np.array(seen))
        positions = self._positions[places].tolist()
        assert positions == list(range(rows.positions[row] + 1)), f"row {row} sees positions {positions}"
        return tuple(self._tokens[places].tolist())


class PagedSimulatedModel(SimulatedModel):
    """The same with block tables; slots without a block are refused.

    Args:
        block_tokens: Slots per block; divides the capacity.
        **options: As for the other.
    """

    def __init__(self, law: Law, *, block_tokens: int, **options) -> None:
        super().__init__(law, **options)
        self.block_tokens, self.num_blocks = block_tokens, self.num_sequences * self.capacity // block_tokens
        self._tokens, self._positions = (np.full((self.num_blocks, block_tokens), -1, np.int64) for _ in range(2))
        self._tables = np.arange(self.num_blocks).reshape(self.num_sequences, -1)

    def set_blocks(self, sequence: int, blocks: Sequence[int]) -> None:
        self._tables[sequence] = -1
        self._tables[sequence, : len(blocks)] = blocks

    def _places(self, sequences: np.ndarray | int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        blocks = self._tables[sequences, slots // self.block_tokens]
        assert (blocks >= 0).all(), "a slot without a block"
        return blocks, slots % self.block_tokens


class SimulatedHead(SimulatedModel):
    """A draft that knows a text only by the hidden state of the token before the last.

    Args:
        law: As for the other, like the options.
    """

    def __init__(self, law: Law, **options) -> None:
        super().__init__(law, **options)
        self._states = np.full((self.num_sequences, self.capacity, self.capacity), -1, np.int64)
        self._num_given = np.zeros(self.num_sequences, np.int64)
        self._has_read_given = np.zeros((self.num_sequences, self.capacity), bool)

    def take_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        assert start in (0, self._num_given[sequence]), "hidden states were left out, or given twice"
        assert (features == features[:, :1]).all(), "layers of different tokens"
        stop = start + len(features)
        self._states[sequence, start:stop] = features[:, 0]
        self._num_given[sequence] = stop

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        is_given = (rows.num_ancestors == 0) & (rows.slots <= self._num_given[rows.sequences])
        self._has_read_given[rows.sequences, rows.slots] = is_given
        logits = super().forward(rows, logit_rows=logit_rows)
        for sequence, slot, text in zip(rows.sequences.tolist(), rows.slots.tolist(), self.texts, strict=True):
            if slot >= self._num_given[sequence]:
                self._states[sequence, slot] = -1
                self._states[sequence, slot, : len(text)] = text
        return logits

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        super().move_slots(sequence, sources, targets)
        for array in (self._states, self._has_read_given):
            array[sequence, targets] = array[sequence, sources]

    def _text(self, rows: Rows, row: int) -> tuple[int, ...]:
        sequence, count = rows.sequences[row], rows.num_ancestors[row]
        branch = rows.ancestors[row, :count].tolist()
        seen = [*range(rows.lengths[row]), *branch]
        assert seen[-1] == rows.slots[row] > 0, "a row must see itself, last, and another before it"
        state = self._states[sequence, seen[-2]]
        text = (*state[state >= 0].tolist(), int(rows.token_ids[row]))
        assert len(text) == rows.positions[row] + 1, f"row {row} reads the hidden state of position {len(text) - 2}"
        num_read = min(rows.lengths[row], self._num_given[sequence] + 1)
        assert self._has_read_given[sequence, 1:num_read].all(), "the target's states came, and were not read"
        keys = self._tokens[sequence, seen[1:]]  # the first token has no keys and values
        assert keys.tolist() == list(text[1:]), "keys and values of one text, hidden states of another"
        return text
