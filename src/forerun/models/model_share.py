"""Which part of a model each of several processes holds: whole heads, a part of the MLP, a part of the vocabulary.

The parts need not be equal: where GPUs are not, each gets what is in proportion to what it can do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from forerun.core.errors import ConfigError
from forerun.models.config import DecoderConfig

_SPLIT_BY_OUTPUT: Final = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_SPLIT_BY_INPUT: Final = ("o_proj", "down_proj")
_OF_ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_INNER_UNITS: Final = (128, 64, 32, 16, 8, 4, 2, 1)
"""Rows of the MLP are shared in runs of as many as leave each process enough of them: kernels and narrow formats like
long ones."""
_RUNS_EACH: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSplit:
    """How a model is shared.

    Attributes:
        config: Of the whole model.
        parts: How much each process gets, in proportion.
        num_kv_heads: Key/value heads of each process; the query heads that read them are with them.
        num_inner: Rows of the MLP of each process.
    """

    config: DecoderConfig
    parts: tuple[int, ...]
    num_kv_heads: tuple[int, ...]
    num_inner: tuple[int, ...]

    @classmethod
    def of(cls, config: DecoderConfig, parts: Sequence[int]) -> "ModelSplit":
        """Share a model.

        Args:
            config: Of the whole model.
            parts: How much each process gets, in proportion; at least 1 each.

        Raises:
            ConfigError: A process would get no head, or no row of the MLP.
        """
        inner = config.intermediate_size
        units = (unit for unit in _INNER_UNITS if inner % unit == 0 and inner // unit >= _RUNS_EACH * len(parts))
        unit = next(units, 1)
        return cls(
            config=config,
            parts=tuple(parts),
            num_kv_heads=_counts("num_kv_heads", config.num_kv_heads, parts),
            num_inner=tuple(unit * count for count in _counts("intermediate_size", inner // unit, parts)),
        )

    def share_config(self, rank: int) -> DecoderConfig:
        """Return the shape of one process's share."""
        group = self.config.num_heads // self.config.num_kv_heads
        return replace(
            self.config,
            num_heads=group * self.num_kv_heads[rank],
            num_kv_heads=self.num_kv_heads[rank],
            intermediate_size=self.num_inner[rank],
        )

    def share_tensor(self, name: str, values: np.ndarray, *, rank: int) -> np.ndarray:
        """Return one process's share of a parameter.

        Args:
            name: Of the parameter.
            values: The whole of it.
            rank: Of the process.
        """
        module = name.rpartition(".")[0].rpartition(".")[2]
        if module not in (*_SPLIT_BY_OUTPUT, *_SPLIT_BY_INPUT):
            return values
        axis = 0 if module in _SPLIT_BY_OUTPUT else 1
        counts = self.num_kv_heads if module in _OF_ATTENTION else self.num_inner
        each = values.shape[axis] // sum(counts)
        start, stop = each * sum(counts[:rank]), each * sum(counts[: rank + 1])
        return values[start:stop] if axis == 0 else values[:, start:stop]

    def share_states(self, states: np.ndarray, *, rank: int) -> np.ndarray:
        """Return one process's heads of cached keys and values ``[slots, layers, 2, heads, head_dim]``."""
        return np.split(states, np.cumsum(self.num_kv_heads)[:-1], axis=3)[rank]

    def columns(self, num_columns: int) -> tuple[int, ...]:
        """Return how many columns of the logits each process computes.

        Raises:
            ConfigError: There are fewer than processes.
        """
        return _counts("columns", num_columns, self.parts)


def _counts(name: str, total: int, parts: Sequence[int]) -> tuple[int, ...]:
    """Share a number in proportion, by the largest remainders."""
    whole = sum(parts)
    counts = [total * part // whole for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda place: -(total * parts[place] % whole))
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    if min(counts) == 0:
        raise ConfigError(
            f"{name}: {total} can't be shared by {len(parts)} processes as {', '.join(map(str, parts))}, some would "
            "get none; take fewer processes, or parts nearer to each other"
        )
    return tuple(counts)
