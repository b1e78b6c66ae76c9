"""Attention over blocks against NumPy in float64, and rows that share blocks against rows by themselves, bit by bit."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.nn import attention, attention_weights, cache_blocks

NUM_BLOCKS, NUM_PLACES = 9, 3
NUM_SLOTS = NUM_PLACES * cache_blocks.PANEL


@dataclass(frozen=True, kw_only=True)
class Case:
    """What attention is asked; names as in :func:`forerun.nn.attention.attend`."""

    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    tables: np.ndarray
    sequences: np.ndarray
    lengths: np.ndarray
    ancestors: np.ndarray
    num_ancestors: np.ndarray

    @property
    def group(self) -> int:
        return self.queries.shape[1] // len(self.sequences)

    def take(self, rows: np.ndarray) -> "Case":
        """Only some of the rows, or all in another order."""
        num_kv_heads, _, head_dim = self.queries.shape
        queries = self.queries.reshape(num_kv_heads, -1, self.group, head_dim)[:, rows]
        return replace(
            self,
            queries=np.ascontiguousarray(queries).reshape(num_kv_heads, -1, head_dim),
            sequences=self.sequences[rows],
            lengths=self.lengths[rows],
            ancestors=self.ancestors[rows],
            num_ancestors=self.num_ancestors[rows],
        )

    def unshared(self) -> "Case":
        """The same, each sequence with copies of its blocks of its own."""
        blocks = np.arange(self.tables.size).reshape(self.tables.shape)
        return replace(
            self, keys=self.keys[self.tables.ravel()], values=self.values[self.tables.ravel()], tables=blocks
        )

    def attend(self, *, num_threads: int = 1) -> np.ndarray:
        out = np.full((len(self.sequences), self.queries.shape[0] * self.group * self.keys.shape[2]), np.nan, "f4")
        operands = (
            self.queries, self.keys, self.values, self.tables, self.sequences, self.lengths, self.ancestors,
            self.num_ancestors, out,
        )  # fmt: skip
        if num_threads > 1:
            attention.attend_in_threads(*operands, num_threads)
        else:
            attention.attend(*operands)
        return out

    def oracle(self) -> np.ndarray:
        """Row by row and head by head in float64."""
        num_kv_heads, _, head_dim = self.queries.shape

        def by_slot(cached: np.ndarray) -> np.ndarray:
            held = cached[self.tables].swapaxes(1, 2)
            return held.reshape(len(self.tables), num_kv_heads, NUM_SLOTS, -1).astype(np.float64)

        keys, values = by_slot(self.keys.swapaxes(-1, -2)), by_slot(self.values)
        out = np.empty((len(self.sequences), num_kv_heads, self.group, head_dim))
        for m, sequence in enumerate(self.sequences):
            places = [*range(self.lengths[m]), *self.ancestors[m, : self.num_ancestors[m]]]
            for g in range(num_kv_heads):
                asked = self.queries[g, m * self.group : (m + 1) * self.group].astype(np.float64)
                scores = asked @ keys[sequence, g, places].T
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                weights /= weights.sum(axis=1, keepdims=True)
                out[m, g] = weights @ values[sequence, g, places, :head_dim]
        return out.reshape(len(self.sequences), -1)


def case(
    seen: list[tuple[int, list[int]]], sequences: np.ndarray, tables: np.ndarray, *, shape: tuple[int, int, int],
    size: float = 1.0, seed: int = 0,
) -> Case:  # fmt: skip
    """Rows that see prefixes and ancestors, over random keys and values; slots that nobody sees hold numbers, too."""
    (num_kv_heads, group, head_dim), rng = shape, np.random.default_rng(seed)
    keys, values = cache_blocks.empty_cache(num_blocks=NUM_BLOCKS, num_kv_heads=num_kv_heads, head_dim=head_dim)
    keys[...] = rng.standard_normal(keys.shape)
    values[..., :head_dim] = rng.standard_normal((*values.shape[:3], head_dim))
    num_ancestors = np.array([len(slots) for _, slots in seen])
    ancestors = np.zeros((len(seen), max(1, num_ancestors.max())), np.int64)
    for m, (_, slots) in enumerate(seen):
        ancestors[m, : len(slots)] = slots
    return Case(
        queries=(rng.standard_normal((num_kv_heads, len(seen) * group, head_dim)) * size).astype(np.float32),
        keys=keys, values=values, tables=tables, sequences=sequences,
        lengths=np.array([length for length, _ in seen]), ancestors=ancestors, num_ancestors=num_ancestors,
    )  # fmt: skip


@st.composite
def visible_slots(draw) -> tuple[int, list[int]]:
    """A prefix and ancestors beyond it; at least one slot."""
    length = draw(st.integers(0, NUM_SLOTS - 6))
    ancestors = sorted(draw(st.sets(st.integers(length, NUM_SLOTS - 1), min_size=0 if length else 1, max_size=5)))
    return length, ancestors


@st.composite
def block_tables(draw) -> np.ndarray:
    """Tables of sequences that begin as one before them does, for as many blocks as may be."""
    tables = [draw(st.permutations(range(NUM_BLOCKS)))[:NUM_PLACES]]
    for _ in range(draw(st.integers(0, 4))):
        num_shared = draw(st.integers(0, NUM_PLACES))
        own = draw(st.permutations(range(NUM_BLOCKS)))[:NUM_PLACES]
        tables.append([*draw(st.sampled_from(tables))[:num_shared], *own[num_shared:]])
    return np.array(tables)


@settings(max_examples=80, deadline=None)
@given(
    seen=st.lists(visible_slots(), min_size=1, max_size=20),
    tables=block_tables(),
    shape=st.sampled_from([(1, 1, 4), (2, 3, 8), (1, 9, 40), (3, 1, 64), (1, 60, 32)]),
    size=st.sampled_from([0.1, 1.0, 8.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_see_their_prefix_and_branch_whoever_is_beside_them(seen, tables, shape, size, seed):
    sequences = np.sort(np.random.default_rng(seed).integers(0, len(tables), len(seen)))
    asked = case(seen, sequences, tables, shape=shape, size=size, seed=seed)
    out = asked.attend()
    np.testing.assert_allclose(out, asked.oracle(), atol=1e-4)
    np.testing.assert_array_equal(asked.unshared().attend(), out)
    for num_threads in (2, 5):
        np.testing.assert_array_equal(asked.attend(num_threads=num_threads), out)
    order = np.random.default_rng(seed).permutation(len(seen))
    np.testing.assert_array_equal(asked.take(order).attend(), out[order])
    for m in range(len(seen)):
        np.testing.assert_array_equal(asked.take(np.array([m])).attend()[0], out[m])


def test_a_load_of_rows_over_one_beginning():
    """More rows than a tile holds: single ones, verifications and a tree, over a beginning that all have in common."""
    tables = np.array([[8, own % 2, own] for own in range(8)])
    chains = [(sequence, [(70 + sequence + row, []) for row in range(1 + sequence)]) for sequence in range(7)]
    tree = [(40, [40, 41, 90][:depth]) for depth in (1, 2, 3)] + [(40, [42, 44]), (33, [33])]
    seen = [some for _, rows in chains for some in rows] + tree
    sequences = np.array([sequence for sequence, rows in chains for _ in rows] + [7] * len(tree))
    asked = case(seen, sequences, tables, shape=(3, 3, 64))
    out = asked.attend()
    np.testing.assert_allclose(out, asked.oracle(), atol=1e-4)
    np.testing.assert_array_equal(asked.unshared().attend(), out)
    for m in range(len(seen)):
        np.testing.assert_array_equal(asked.take(np.array([m])).attend()[0], out[m])


def test_a_block_that_nobody_sees_is_not_read():
    """A table's entries beyond what is seen may be anything, and slots beyond it may hold no numbers."""
    asked = case([(33, []), (32, []), (5, [6])], np.array([0, 1, 2]), np.array([[4, 2, 7], [4, 99, 99], [4, 99, 99]]),
                 shape=(1, 3, 8))  # fmt: skip
    out = asked.attend()
    asked.keys[7], asked.values[7] = np.nan, np.nan
    np.testing.assert_array_equal(asked.attend(), out)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40, 64])
def test_weights_are_exponentials_over_their_largest_score(length):
    scores = (np.random.default_rng(length).standard_normal(64) * 30).astype(np.float32)
    expected = np.exp((scores[:length] - scores[:length].max()).astype(np.float64))
    none = np.zeros(1, np.int64)
    total = attention_weights.mask_exp(scores, length, none, 0, np.zeros(1, np.float32))
    np.testing.assert_allclose(scores[:length], expected, rtol=1e-6, atol=1e-37)
    assert not scores[length:].any()
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-6)


def test_slots_trade_places():
    keys, values = cache_blocks.empty_cache(num_blocks=4, num_kv_heads=2, head_dim=8)
    rng = np.random.default_rng(0)
    keys[...], values[...] = rng.standard_normal(keys.shape), rng.standard_normal(values.shape)
    old_keys, old_values = keys.copy(), values.copy()
    table = np.array([3, 1])
    cache_blocks.move_slots(keys, values, table, np.array([3, 40, 41]), np.array([40, 3, 63]))
    order = np.arange(64)
    order[[40, 3, 63]] = [3, 40, 41]
    for cached, old in ((keys.swapaxes(-1, -2), old_keys.swapaxes(-1, -2)), (values, old_values)):
        now, before = (np.concatenate(list(some[table]), axis=1) for some in (cached, old))
        np.testing.assert_array_equal(now, before[:, order])
        np.testing.assert_array_equal(cached[[0, 2]], old[[0, 2]])
