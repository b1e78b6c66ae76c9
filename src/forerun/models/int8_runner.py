"""The fast CPU path: a decoder with int8 weights, fused row kernels and a cache of blocks.

One pass is, per layer, four integer matrix products, one attention and five fused kernels. A row's logits are bitwise
the same whatever the width of the pass and whichever sequences are beside it (tests/oracle holds it to that).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from forerun.core.errors import ConfigError
from forerun.core.rows import Rows
from forerun.models.block_tables import BlockTables
from forerun.models.cache_bounds import check_cache_size, check_rows, check_slots, check_span
from forerun.models.config import DecoderConfig
from forerun.models.feature_store import FeatureStore
from forerun.nn import attention, cache_blocks
from forerun.nn import row_kernels as kernels
from forerun.nn.int8_linear import Int8Linear
from forerun.nn.rope import rope_frequencies

TensorSource = Callable[[str], np.ndarray]


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Int8Linear
    out: Int8Linear
    gate_up: Int8Linear
    down: Int8Linear
    attention_norm: np.ndarray
    mlp_norm: np.ndarray
    bias: np.ndarray
    q_norm: np.ndarray
    k_norm: np.ndarray
    keys: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What a layer writes for each row: queries, what attention gives, rows quantised for the products."""

    queries: np.ndarray
    mixed: np.ndarray
    narrow: np.ndarray
    heads: np.ndarray
    wide: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, config: DecoderConfig, *, num_rows: int, num_levels: int) -> "_Buffers":
        width, group_rows = config.num_heads * config.head_dim, num_rows * config.num_heads // config.num_kv_heads
        return cls(
            queries=np.empty((config.num_kv_heads, group_rows, config.head_dim), np.float32),
            mixed=np.empty((num_rows, width), np.float32),
            narrow=np.empty((num_levels * num_rows, config.hidden_size), np.uint8),
            heads=np.empty((num_levels * num_rows, width), np.uint8),
            wide=np.empty((num_levels * num_rows, config.intermediate_size), np.uint8),
            scale=np.empty(num_rows, np.float32),
        )

    def take(self, rows: np.ndarray) -> "_Buffers":
        """Return buffers for some of the rows, with their queries."""
        num_kv_heads, _, head_dim = self.queries.shape
        num_rows, num_taken = len(self.scale), len(rows)
        num_levels = len(self.narrow) // num_rows
        queries = self.queries.reshape(num_kv_heads, num_rows, -1)[:, rows]
        return _Buffers(
            queries=np.ascontiguousarray(queries).reshape(num_kv_heads, -1, head_dim),
            mixed=self.mixed[:num_taken],
            narrow=self.narrow[: num_levels * num_taken],
            heads=self.heads[: num_levels * num_taken],
            wide=self.wide[: num_levels * num_taken],
            scale=self.scale[:num_taken],
        )


def _own(weight: np.ndarray) -> np.ndarray:
    """Return a copy of the one type that the kernels are compiled for: float32, contiguous, writeable."""
    return np.array(weight, np.float32, order="C")


class Int8Runner:
    """Runs a decoder on rows of tokens, and owns its key/value cache.

    Args:
        config: Shape of the model.
        tensor: Gives a weight by its Hugging Face name (without ``model.``) as float32; called once for each.
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence; rounded up to a multiple of 32.
        vocab_ids: Target ids of the rows of a reduced output head, ascending; ``None`` for the whole vocabulary.
        embedding: float16 ``[vocab, hidden]``, the ``embedding`` of a runner whose model has the same; ``None`` asks
            ``tensor`` for it.
        num_levels: 2 keeps rows at 15 bits (the law stays that of the int8 weights), 1 at 8 bits (cheaper; for drafts).

    Raises:
        ConfigError: The model needs what the kernels don't do (a sliding window that ends within the capacity), or
            ``num_levels`` is neither 1 nor 2.

    Effects:
        Allocates ``2 * num_layers * num_sequences * capacity * num_kv_heads * head_dim`` float32 (touched as used).
    """

    def __init__(
        self,
        config: DecoderConfig,
        tensor: TensorSource,
        *,
        num_sequences: int = 1,
        capacity: int = 2048,
        vocab_ids: np.ndarray | None = None,
        embedding: np.ndarray | None = None,
        num_levels: int = 2,
    ) -> None:
        if num_levels not in (1, 2):
            raise ConfigError(f"num_levels={num_levels}: must be 1 (8-bit rows) or 2 (15-bit rows)")
        check_cache_size(num_sequences=num_sequences, capacity=capacity)
        if config.sliding_window is not None and config.sliding_window < capacity:
            raise ConfigError(
                f"sliding_window={config.sliding_window} is shorter than the context of {capacity} tokens: "
                f'the int8 kernels see all of it; ask for at most {config.sliding_window} tokens, or dtype="float32"'
            )
        self.config = config
        self.num_levels = num_levels
        self.num_sequences = num_sequences
        self.capacity = -(-capacity // cache_blocks.PANEL) * cache_blocks.PANEL
        self.vocab_ids = vocab_ids
        self._tables = BlockTables(num_sequences=num_sequences, capacity=self.capacity, block_tokens=cache_blocks.PANEL)
        self.block_tokens, self.num_blocks = cache_blocks.PANEL, self._tables.num_blocks
        self._layers = [self._load_layer(tensor, index) for index in range(config.num_layers)]
        self._final_norm = _own(tensor("norm.weight"))
        rows = tensor("embed_tokens.weight") if embedding is None else embedding
        head = rows if config.tie_embeddings else tensor("lm_head.weight")
        self._head = Int8Linear.from_float(head if vocab_ids is None else head[vocab_ids])
        self.embedding = rows.astype(np.float16, copy=False)
        frequencies = rope_frequencies(head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling)
        angles = np.arange(self.capacity, dtype=np.float32)[:, None] * frequencies.numpy()
        self._cos, self._sin = np.cos(angles), np.sin(angles)
        self._features = FeatureStore(
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            num_places=self.num_blocks * self.block_tokens,
        )

    def _load_layer(self, tensor: TensorSource, index: int) -> _Layer:
        config, name = self.config, f"layers.{index}"
        attend, mlp, empty = f"{name}.self_attn", f"{name}.mlp", np.empty(0, np.float32)
        keys, values = cache_blocks.empty_cache(
            num_blocks=self.num_blocks, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim
        )
        return _Layer(
            qkv=Int8Linear.from_float(*(tensor(f"{attend}.{part}_proj.weight") for part in "qkv")),
            out=Int8Linear.from_float(tensor(f"{attend}.o_proj.weight")),
            gate_up=Int8Linear.from_float(tensor(f"{mlp}.gate_proj.weight"), tensor(f"{mlp}.up_proj.weight")),
            down=Int8Linear.from_float(tensor(f"{mlp}.down_proj.weight")),
            attention_norm=_own(tensor(f"{name}.input_layernorm.weight")),
            mlp_norm=_own(tensor(f"{name}.post_attention_layernorm.weight")),
            bias=_own(np.concatenate([tensor(f"{attend}.{part}_proj.bias") for part in "qkv"]))
            if config.attention_bias
            else empty,
            q_norm=_own(tensor(f"{attend}.q_norm.weight")) if config.qk_norm else empty,
            k_norm=_own(tensor(f"{attend}.k_norm.weight")) if config.qk_norm else empty,
            keys=keys,
            values=values,
        )

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._head.out_features

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """Run rows through the model.

        Args:
            rows: The tokens; their keys and values are written to the cache.
            logit_rows: int64 indices of the rows whose logits are wanted; ``None`` for all.

        Returns:
            float32 logits ``[len(logit_rows), vocab_size]``.

        Raises:
            RequestError: A row lies outside the cache or the vocabulary; nothing has been written then.
        """
        config, eps = self.config, self.config.norm_eps
        check_rows(rows, num_sequences=self.num_sequences, capacity=self.capacity, vocab_size=config.vocab_size)
        if (order := self._tables.order(rows)) is not None:
            rows, places = rows.take(order), np.argsort(order)
            logit_rows = places if logit_rows is None else places[logit_rows]
        # One type each: another would compile every kernel again.
        sequences, positions, blocks, lanes, lengths, ancestors, num_ancestors = (
            np.ascontiguousarray(array, np.int64)
            for array in (
                rows.sequences, rows.positions, *self._tables.places(rows), rows.lengths, rows.ancestors,
                rows.num_ancestors,
            )
        )  # fmt: skip
        places = blocks * self.block_tokens + lanes
        num_threads = torch.get_num_threads() if lengths.sum() >= attention.PARALLEL_SLOTS else 1
        x = self.embedding[rows.token_ids].astype(np.float32)
        update, held = np.zeros_like(x), _Buffers.of(config, num_rows=len(rows), num_levels=self.num_levels)
        for index, layer in enumerate(self._layers):
            kernels.add_norm_quantize(x, update, layer.attention_norm, eps, held.narrow, held.scale)
            self._features.put(index, places, x)
            kernels.write_qkv(
                layer.qkv(held.narrow, held.scale), layer.bias, layer.q_norm, layer.k_norm, eps, self._cos, self._sin,
                positions, blocks, lanes, held.queries, layer.keys, layer.values,
            )  # fmt: skip
            if logit_rows is not None and index == config.num_layers - 1:  # nobody reads the others any more
                if len(logit_rows) == 0:
                    return np.empty((0, self.vocab_size), np.float32)
                x, held = x[logit_rows], held.take(logit_rows)
                sequences, lengths, ancestors, num_ancestors = (
                    array[logit_rows] for array in (sequences, lengths, ancestors, num_ancestors)
                )
            operands = (
                held.queries, layer.keys, layer.values, self._tables.blocks, sequences, lengths, ancestors,
                num_ancestors, held.mixed,
            )  # fmt: skip
            if num_threads > 1:
                attention.attend_in_threads(*operands, num_threads)
            else:
                attention.attend(*operands)
            kernels.quantize_rows(held.mixed, held.heads, held.scale)
            update = layer.out(held.heads, held.scale)
            kernels.add_norm_quantize(x, update, layer.mlp_norm, eps, held.narrow, held.scale)
            kernels.silu_mul_quantize(layer.gate_up(held.narrow, held.scale), held.wide, held.scale)
            update = layer.down(held.wide, held.scale)
        kernels.add_norm_quantize(x, update, self._final_norm, eps, held.narrow, held.scale)
        return self._head(held.narrow, held.scale)

    def set_blocks(self, sequence: int, blocks: Sequence[int]) -> None:
        """As :meth:`forerun.core.paging.PagedModel.set_blocks`."""
        self._tables.set(sequence, blocks)

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """Copy cached keys and values of a sequence between slots (sources are read before targets are written).

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        check_slots(sequence, sources, targets, num_sequences=self.num_sequences, capacity=self.capacity)
        read, written = np.asarray(sources, np.int64), np.asarray(targets, np.int64)
        table = self._tables.table(sequence, np.concatenate([read, written]))
        for layer in self._layers:
            cache_blocks.move_slots(layer.keys, layer.values, table, read, written)

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """As :meth:`forerun.core.protocols.LanguageModel.read_states`."""
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        config, table = self.config, self._tables.table(sequence, np.arange(start, stop))
        states = np.empty((stop - start, len(layer_ids), 2, config.num_kv_heads, config.head_dim), np.float32)
        for place, index in enumerate(layer_ids):
            layer = self._layers[index]
            cache_blocks.read_slots(layer.keys, layer.values, table, start, states[:, place])
        return states

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """As :meth:`forerun.core.protocols.LanguageModel.write_states`."""
        check_span(sequence, start, start + len(states), num_sequences=self.num_sequences, capacity=self.capacity)
        table = self._tables.table(sequence, np.arange(start, start + len(states)))
        for place, layer in enumerate(self._layers):
            cache_blocks.write_slots(layer.keys, layer.values, table, start, states[:, place])

    def keep_features(self, layer_ids: Sequence[int]) -> None:
        """As :meth:`forerun.core.features.FeatureSource.keep_features`."""
        self._features.keep(layer_ids)

    def read_features(self, sequence: int, start: int, stop: int) -> np.ndarray:
        """As :meth:`forerun.core.features.FeatureSource.read_features`."""
        return self._features.read(self._places(sequence, start, stop))

    def write_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        """As :meth:`forerun.core.features.FeatureSource.write_features`."""
        self._features.write(self._places(sequence, start, start + len(features)), features)

    def _places(self, sequence: int, start: int, stop: int) -> np.ndarray:
        """Return the places of neighbouring slots among what is kept."""
        check_span(sequence, start, stop, num_sequences=self.num_sequences, capacity=self.capacity)
        slots = np.arange(start, stop)
        table = self._tables.table(sequence, slots)
        return table[slots // self.block_tokens] * self.block_tokens + slots % self.block_tokens
