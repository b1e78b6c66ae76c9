"""A pass of a decoder as a function of tensors whose shapes are fixed: what a graph can record.

Rows are cells of a grid, R for each of N sequences; cells without a row write to a slot that nobody reads. All rows of
a sequence see a common prefix, by its length, and each its own of a few listed slots
(:mod:`forerun.nn.prefix_attention`).

Shape legend: N sequences, R rows of each, T listed slots, S slots of the span, E hidden, H heads, G key/value heads,
P heads of a group, D head_dim, V columns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import pad

from forerun.core.errors import ConfigError
from forerun.models.decoder import Decoder, DecoderAttention, DecoderLayer
from forerun.models.graph_pool import MemoryPact
from forerun.models.slot_cache import SlotCache
from forerun.nn.prefix_attention import (
    UNSEEN,
    AttentionBackend,
    flex_prefix_part,
    joint_attention,
    masked_part,
    merge_parts,
)

_MOST_FLEX_SHAPES: Final = 256
_LEAST_FLEX_HEAD: Final = 16
_LISTED_MULTIPLE: Final = 8
"""Scores in bfloat16 that are 16 bytes together: where products on tensor cores like their rows to begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassGrid:
    """The rows of a pass.

    Attributes:
        token_ids: Tokens ``[N, R]``.
        positions: Rotary positions.
        slots: Where keys and values go.
        lengths: Slots ``[N]`` that all rows of a sequence see, from the first on.
        listed: Further slots ``[N, T]``.
        visible: Which of these each row sees ``[N, R, T]``.
        sequences: Sequences ``[N]`` of the cache, all different; ``None``: the first N, which are read in place.
        before: Slots of the tokens before, for a draft that reads their hidden states.
        is_dense: Whether all listed slots that a row sees lie within the span of the pass.
    """

    token_ids: Int64[Tensor, "N R"]
    positions: Int64[Tensor, "N R"]
    slots: Int64[Tensor, "N R"]
    lengths: Int64[Tensor, " N"]
    listed: Int64[Tensor, "N T"]
    visible: Bool[Tensor, "N R T"]
    sequences: Int64[Tensor, " N"] | None = None
    before: Int64[Tensor, "N R"] | None = None
    is_dense: bool = False

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor], *, is_dense: bool) -> "PassGrid":
        """Return the grid in a pass's arrays, which are those of :class:`forerun.models.row_grid.RowGrid`.

        Args:
            inputs: Also ``sequences`` and ``before`` where they are given.
            is_dense: As of the grid's shape.
        """
        arrays = {name: inputs[name] for name in ("token_ids", "positions", "slots", "lengths", "listed")}
        return cls(
            **arrays,
            visible=inputs["visible"].bool(),
            sequences=inputs.get("sequences"),
            before=inputs.get("before"),
            is_dense=is_dense,
        )

    @property
    def column(self) -> Int64[Tensor, "N 1"]:
        """The sequences, said."""
        if self.sequences is not None:
            return self.sequences.unsqueeze(1)
        return torch.arange(len(self.lengths), device=self.lengths.device).unsqueeze(1)


class GridAttention:
    """How the rows of a pass attend, the same in every layer.

    Args:
        grid: The rows.
        cache: Of keys and values; it is told the rows' positions.
        span: Slots that hold every prefix.
        window: Positions that a row sees back; ``None``: all.
        flex: FlexAttention, to read the prefix by; ``None``: two matrix products.
        first_slot: Slots before it are seen by no row; ``flex`` reads from the first slot on.
    """

    def __init__(
        self,
        grid: PassGrid,
        cache: SlotCache,
        *,
        span: int,
        window: int | None = None,
        flex: Callable[..., tuple[Tensor, Any]] | None = None,
        first_slot: int = 0,
    ) -> None:
        self._grid, self._cache, self._span, self._flex = grid, cache, span, flex
        self._column, self._listed = grid.column, grid.listed
        cache.positions[self._column, grid.slots] = grid.positions
        slots = torch.arange(span, device=grid.lengths.device)
        prefix = ((slots >= first_slot) & (slots < grid.lengths.unsqueeze(1))).unsqueeze(1)
        listed = grid.visible
        if window is not None:
            earliest = (grid.positions - window).unsqueeze(2)
            positions = cache.positions
            prefix = prefix & (positions[self._column.squeeze(1), :span].unsqueeze(1) > earliest)
            listed = listed & (positions[self._column, grid.listed].unsqueeze(1) > earliest)
        self._listed_visible: Bool[Tensor, "N R T"] = listed
        self._bias: Float32[Tensor, "N R _"] | None = None
        if flex is None:
            self._bias = torch.where(self._visible(prefix, listed), 0.0, UNSEEN)

    def __call__(
        self, attention: DecoderAttention, x_NRE: Tensor, cos: Tensor, sin: Tensor, *, layer: int
    ) -> Float[Tensor, "N R E"]:
        """Write the rows' keys and values of a layer, and return what its attention adds.

        Args:
            attention: Of the layer.
            x_NRE: What it reads.
            cos: As for :meth:`forerun.models.decoder.DecoderAttention.heads`, like ``sin``.
            sin: See there.
            layer: Its number.
        """
        grid, config, column = self._grid, attention.config, self._column
        num, width = grid.token_ids.shape
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        grouped = (num, width, config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
        q_NRHD, k_NRGD, v_NRGD = attention.heads(x_NRE, cos, sin)
        keys[column, :, grid.slots], values[column, :, grid.slots] = k_NRGD, v_NRGD
        q_NGRPD = q_NRHD.view(grouped).transpose(1, 2)
        prefix = (self._prefix(keys), self._prefix(values))
        if self._bias is not None and grid.is_dense:
            y_NGRPD = joint_attention(q_NGRPD, [prefix], self._bias)
        else:
            few = keys[column, :, self._listed].transpose(1, 2), values[column, :, self._listed].transpose(1, 2)
            if self._bias is not None:
                y_NGRPD = joint_attention(q_NGRPD, [prefix, few], self._bias)
            else:
                assert self._flex is not None
                y_NGRPD = merge_parts(
                    flex_prefix_part(q_NGRPD, *prefix, grid.lengths, attend=self._flex),
                    masked_part(q_NGRPD, *few, self._listed_visible),
                )
        return attention.o_proj(y_NGRPD.transpose(1, 2).reshape(num, width, -1).to(x_NRE.dtype))

    def _visible(self, prefix: Tensor, listed: Tensor) -> Bool[Tensor, "N R _"]:
        """Return which slots each row sees: of the span where the grid is dense, else also of the listed ones."""
        width = listed.shape[1]
        if self._grid.is_dense:
            sees = torch.zeros(len(listed), width, self._span, device=listed.device)
            slots = self._listed.clamp(max=self._span - 1).unsqueeze(1).expand(-1, width, -1)
            return prefix | (sees.scatter_add_(2, slots, listed.float()) > 0)
        missing = -listed.shape[2] % _LISTED_MULTIPLE
        self._listed = pad(self._listed, (0, missing))
        return torch.cat((prefix.expand(-1, width, -1), pad(listed, (0, missing))), dim=2)

    def _prefix(self, half: Tensor) -> Tensor:
        if self._grid.sequences is None:
            return half[: len(self._grid.lengths), :, : self._span]
        return half[:, :, : self._span][self._grid.sequences]


class StaticPass:
    """Runs grids of rows through a decoder and its cache, without a question to the host.

    Args:
        decoder: The model.
        cache: Its keys and values; written by every pass.
        head: From the last hidden states to logits.
        backend: How the prefix is read.
        pact: As for :class:`forerun.models.graph_pool.GraphPool`, where the decoder is a share.

    Raises:
        ConfigError: As :func:`check_flex`.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: SlotCache,
        head: Callable[[Tensor], Tensor],
        *,
        backend: AttentionBackend,
        pact: MemoryPact | None = None,
    ) -> None:
        self._decoder, self._cache, self._head, self._pact = decoder, cache, head, pact
        self._window = decoder.config.sliding_window
        self._flex: Callable[..., tuple[Tensor, Any]] | None = None
        if backend == "flex" and self._window is None:
            check_flex(head_dim=decoder.config.head_dim, device_type=cache.positions.device.type)
            self._flex = _flex_attention(cache.positions.device)

    def logits(self, grid: PassGrid, *, span: int, cells: tuple[Tensor, Tensor] | None = None) -> Float[Tensor, "_ V"]:
        """Write the rows' keys and values, and return float32 logits.

        Args:
            grid: The rows.
            span: Slots that hold every prefix.
            cells: Sequence and row of the cells whose logits are wanted, in order; ``None`` for all ``[N, R, V]``.
        """
        hidden_NRE = self.hidden_states(grid, span=span)
        return self._head(hidden_NRE if cells is None else hidden_NRE[cells]).float()

    def hidden_states(self, grid: PassGrid, *, span: int) -> Float[Tensor, "N R E"]:
        """Write the rows' keys and values, and return the normalised last hidden state; see :meth:`logits`."""
        decoder, column = self._decoder, grid.column
        attend = GridAttention(grid, self._cache, span=span, window=self._window, flex=self._flex)
        x_NRE = decoder.embed_tokens(grid.token_ids)
        cos, sin = decoder.rotations(grid.positions, dtype=x_NRE.dtype)
        for index, module in enumerate(decoder.layers):
            layer = cast(DecoderLayer, module)
            self._cache.put_features(index, column, grid.slots, x_NRE)
            normed_NRE = layer.input_layernorm(x_NRE)
            x_NRE = x_NRE + self._summed(partial(attend, layer.self_attn, normed_NRE, cos, sin, layer=index), x_NRE)
            normed_NRE = layer.post_attention_layernorm(x_NRE)
            x_NRE = x_NRE + self._summed(partial(layer.mlp, normed_NRE), x_NRE)
        return decoder.norm(x_NRE)

    def _summed(self, work: Callable[[], Tensor], like: Tensor) -> Tensor:
        return work() if self._pact is None else self._pact.summed(work, like)


def check_flex(*, head_dim: int, device_type: str) -> None:
    """Refuse FlexAttention where its kernel does not take a model.

    Args:
        head_dim: Of the model.
        device_type: ``cuda``, or ``cpu``, where it is not compiled.

    Raises:
        ConfigError: Heads are too small.
    """
    if device_type == "cuda" and head_dim < _LEAST_FLEX_HEAD:
        raise ConfigError(
            f'attention="flex": its kernel takes heads of {_LEAST_FLEX_HEAD} numbers at least, and those of this model '
            f'have {head_dim}; use attention="matmul"'
        )


def _flex_attention(device: torch.device) -> Callable[..., tuple[Tensor, Any]]:
    """Return FlexAttention, compiled where that makes it one kernel.

    Each shape of a pass is compiled by itself. After a few torch would go on without compiling, and say so in a log
    only: its limit is raised to the most that its own bound on all shapes together lets through.
    """
    from torch.nn.attention.flex_attention import flex_attention  # takes long to import

    if device.type != "cuda":
        return cast(Callable[..., tuple[Tensor, Any]], flex_attention)
    compile_ = cast(Callable[..., Callable[..., tuple[Tensor, Any]]], torch.compile)  # its types lack the limit
    return compile_(flex_attention, dynamic=False, recompile_limit=_MOST_FLEX_SHAPES)
