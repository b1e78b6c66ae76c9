"""What a cache of slots can hold: checked before a kernel writes to memory that is not its own."""

import numpy as np

from forerun.core.errors import ConfigError, RequestError
from forerun.core.rows import Rows


def check_cache_size(*, num_sequences: int, capacity: int) -> None:
    """Check the size asked for.

    Raises:
        ConfigError: A number is below 1.
    """
    for name, value in (("num_sequences", num_sequences), ("capacity", capacity)):
        if value < 1:
            raise ConfigError(f"{name}={value}: a cache needs at least 1; ask for more")


def check_rows(rows: Rows, *, num_sequences: int, capacity: int, vocab_size: int) -> None:
    """Check that every row lies within the cache and the vocabulary.

    Args:
        rows: The rows of a pass.
        num_sequences: Sequences of the cache.
        capacity: Slots, and rotary positions, per sequence.
        vocab_size: Token ids are below it.

    Raises:
        RequestError: One does not, or a row sees no slot at all.
    """
    if len(rows) == 0:
        raise RequestError("a pass of 0 rows: it needs at least 1 token; leave the pass out")
    check_limit("sequence", rows.sequences, num_sequences)
    check_limit("token id", rows.token_ids, vocab_size)
    check_limit("position", rows.positions, capacity)
    if rows.slots is not rows.positions:
        check_limit("slot", rows.slots, capacity)
    check_limit("prefix length", rows.lengths, capacity + 1)
    if rows.num_ancestors.any():
        check_limit("ancestor slot", rows.ancestors, capacity)
    if not (rows.lengths + rows.num_ancestors).all():
        raise RequestError("a row sees no slot: give it a prefix or ancestors, its own slot at least")


def check_slots(sequence: int, sources: list[int], targets: list[int], *, num_sequences: int, capacity: int) -> None:
    """Check a move of slots.

    Raises:
        RequestError: The sequence or a slot lies outside the cache, or there are more of one kind than of the other.
    """
    if len(sources) != len(targets):
        raise RequestError(f"{len(sources)} slots to move to {len(targets)}: give as many targets as sources")
    check_limit("sequence", np.array([sequence]), num_sequences)
    check_limit("slot", np.array([*sources, *targets], np.int64), capacity)


def check_span(sequence: int, start: int, stop: int, *, num_sequences: int, capacity: int) -> None:
    """Check a run of neighbouring slots.

    Raises:
        RequestError: The sequence or a slot lies outside the cache.
    """
    check_limit("sequence", np.array([sequence]), num_sequences)
    if stop > start:
        check_limit("slot", np.array([start, stop - 1]), capacity)


def check_limit(what: str, values: np.ndarray, limit: int) -> None:
    """Check that whole numbers are from 0 to below a limit.

    Raises:
        RequestError: One is not.
    """
    # A negative number is a large one without its sign: one look at all of them, for each pass does this.
    if values.size and int(values.astype(np.uint64).max()) >= limit:
        wrong = int(values.min()) if values.min() < 0 else int(values.max())
        raise RequestError(
            f"{what} {wrong}: must be from 0 to {limit - 1}; shorten the request, or build the model with more capacity"
        )
