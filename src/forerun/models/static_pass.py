"""A pass of a decoder as a function of tensors whose shapes are fixed: what a graph can record.

Rows are cells of a grid, R for each of N sequences; cells without a row write to a slot that nobody reads. All rows of
a sequence see a common prefix, by its length, and each its own of a few listed slots
(:mod:`forerun.nn.prefix_attention`).

Shape legend: N sequences, R rows of each, T listed slots, S slots of the span, E hidden, H heads, G key/value heads,
P heads of a group, D head_dim, V columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from forerun.models.decoder import Decoder, DecoderLayer
from forerun.models.slot_cache import SlotCache
from forerun.nn.prefix_attention import AttentionBackend, AttentionPart, flex_prefix_part, masked_part, merge_parts


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
    """

    token_ids: Int64[Tensor, "N R"]
    positions: Int64[Tensor, "N R"]
    slots: Int64[Tensor, "N R"]
    lengths: Int64[Tensor, " N"]
    listed: Int64[Tensor, "N T"]
    visible: Bool[Tensor, "N R T"]
    sequences: Int64[Tensor, " N"] | None = None


class StaticPass:
    """Runs grids of rows through a decoder and its cache, without a question to the host.

    Args:
        decoder: The model.
        cache: Its keys and values; written by every pass.
        head: From the last hidden states to logits.
        backend: How the prefix is read.
    """

    def __init__(
        self, decoder: Decoder, cache: SlotCache, head: Callable[[Tensor], Tensor], *, backend: AttentionBackend
    ) -> None:
        self._decoder, self._cache, self._head = decoder, cache, head
        self._window = decoder.config.sliding_window
        self._flex = _flex_attention(cache.positions.device) if backend == "flex" and self._window is None else None

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
        num, width = grid.token_ids.shape
        config, decoder, cache = self._decoder.config, self._decoder, self._cache
        sequences = grid.sequences
        is_dense = sequences is None
        if sequences is None:
            sequences = torch.arange(num, device=grid.token_ids.device)
        column = sequences.unsqueeze(1)
        cache.positions[column, grid.slots] = grid.positions
        prefix_visible, listed_visible = self._visible(grid, column, sequences, span=span)
        x_NRE = decoder.embed_tokens(grid.token_ids)
        cos, sin = decoder.rotations(grid.positions, dtype=x_NRE.dtype)
        grouped = (num, width, config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
        for index, (module, keys, values) in enumerate(zip(decoder.layers, cache.keys, cache.values, strict=True)):
            layer = cast(DecoderLayer, module)
            cache.put_features(index, column, grid.slots, x_NRE)
            attention = layer.self_attn
            q_NRHD, k_NRGD, v_NRGD = attention.heads(layer.input_layernorm(x_NRE), cos, sin)
            keys[column, :, grid.slots], values[column, :, grid.slots] = k_NRGD, v_NRGD
            q_NGRPD = q_NRHD.view(grouped).transpose(1, 2)
            spans = [half[:num, :, :span] if is_dense else half[:, :, :span][sequences] for half in (keys, values)]
            few = [half[column, :, grid.listed].transpose(1, 2) for half in (keys, values)]
            y_NGRPD = merge_parts(
                self._prefix_part(q_NGRPD, spans[0], spans[1], prefix_visible, grid.lengths),
                masked_part(q_NGRPD, few[0], few[1], listed_visible),
            )
            y_NRE = y_NGRPD.transpose(1, 2).reshape(num, width, -1).to(x_NRE.dtype)
            x_NRE = x_NRE + attention.o_proj(y_NRE)
            x_NRE = x_NRE + layer.mlp(layer.post_attention_layernorm(x_NRE))
        return decoder.norm(x_NRE)

    def _prefix_part(
        self, q_NGRPD: Tensor, k_NGSD: Tensor, v_NGSD: Tensor, visible: Tensor, lengths_N: Tensor
    ) -> AttentionPart:
        if self._flex is not None:
            return flex_prefix_part(q_NGRPD, k_NGSD, v_NGSD, lengths_N, attend=self._flex)
        return masked_part(q_NGRPD, k_NGSD, v_NGSD, visible)

    def _visible(
        self, grid: PassGrid, column: Tensor, sequences: Tensor, *, span: int
    ) -> tuple[Bool[Tensor, "N _ S"], Bool[Tensor, "N R T"]]:
        """Return which slots of the prefix, and which listed ones, each row sees, within the window if there is one."""
        prefix = (torch.arange(span, device=column.device) < grid.lengths.unsqueeze(1)).unsqueeze(1)
        if self._window is None:
            return prefix, grid.visible
        earliest = (grid.positions - self._window).unsqueeze(2)
        prefix_positions = self._cache.positions[sequences, :span].unsqueeze(1)
        listed_positions = self._cache.positions[column, grid.listed].unsqueeze(1)
        return prefix & (prefix_positions > earliest), grid.visible & (listed_positions > earliest)


def _flex_attention(device: torch.device) -> Callable[..., tuple[Tensor, Any]]:
    """Return FlexAttention, compiled where that makes it one kernel."""
    from torch.nn.attention.flex_attention import flex_attention  # takes long to import

    attend = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention
    return cast(Callable[..., tuple[Tensor, Any]], attend)
