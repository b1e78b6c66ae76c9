"""The fast CPU path: a decoder with int8 weights, fused row kernels and a slot cache.

One pass is, per layer, four integer matrix products, two attention products and five fused kernels. A row's logits are
bitwise the same whatever the width of the pass (tests/oracle holds it to that).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forerun.models.config import DecoderConfig
from forerun.core.rows import Rows
from forerun.nn import row_kernels as kernels
from forerun.nn.int8_linear import Int8Linear
from forerun.nn.rope import rope_frequencies

TensorSource = Callable[[str], np.ndarray]
_BLOCK = 128
"""Slots per attention product: sums over slots are taken block by block, so that they don't depend on the span."""


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
    keys: Tensor
    values: Tensor
    keys_np: np.ndarray
    values_np: np.ndarray


class Int8Runner:
    """Runs a decoder on rows of tokens, and owns its key/value cache.

    Args:
        config: Shape of the model.
        tensor: Gives a weight by its Hugging Face name (without ``model.``) as float32; called once for each.
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence; rounded up to a multiple of 128.
        vocab_ids: Target ids of the rows of a reduced output head, ascending; ``None`` for the whole vocabulary.
        num_levels: 2 keeps rows at 15 bits (the law stays that of the int8 weights), 1 at 8 bits (cheaper; for drafts).

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
        num_levels: int = 2,
    ) -> None:
        self.config = config
        self.num_levels = num_levels
        self.num_sequences = num_sequences
        self.capacity = -(-capacity // _BLOCK) * _BLOCK
        self.vocab_ids = vocab_ids
        self._group = config.num_heads // config.num_kv_heads
        self._layers = [self._load_layer(tensor, index) for index in range(config.num_layers)]
        self._final_norm = tensor("norm.weight")
        embedding = tensor("embed_tokens.weight")
        head = embedding if config.tie_embeddings else tensor("lm_head.weight")
        self._head = Int8Linear.from_float(head if vocab_ids is None else head[vocab_ids])
        self._embedding = embedding.astype(np.float16)
        frequencies = rope_frequencies(head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling)
        angles = torch.arange(self.capacity, dtype=torch.float32)[:, None] * frequencies
        self._cos, self._sin = angles.cos().numpy(), angles.sin().numpy()

    def _load_layer(self, tensor: TensorSource, index: int) -> _Layer:
        config, name = self.config, f"layers.{index}"
        attention, mlp, empty = f"{name}.self_attn", f"{name}.mlp", np.empty(0, np.float32)
        cache = (self.num_sequences, config.num_kv_heads, self.capacity, config.head_dim)
        keys, values = torch.zeros(cache), torch.zeros(cache)
        return _Layer(
            qkv=Int8Linear.from_float(*(tensor(f"{attention}.{part}_proj.weight") for part in "qkv")),
            out=Int8Linear.from_float(tensor(f"{attention}.o_proj.weight")),
            gate_up=Int8Linear.from_float(tensor(f"{mlp}.gate_proj.weight"), tensor(f"{mlp}.up_proj.weight")),
            down=Int8Linear.from_float(tensor(f"{mlp}.down_proj.weight")),
            attention_norm=tensor(f"{name}.input_layernorm.weight"),
            mlp_norm=tensor(f"{name}.post_attention_layernorm.weight"),
            bias=np.concatenate([tensor(f"{attention}.{part}_proj.bias") for part in "qkv"])
            if config.attention_bias
            else empty,
            q_norm=tensor(f"{attention}.q_norm.weight") if config.qk_norm else empty,
            k_norm=tensor(f"{attention}.k_norm.weight") if config.qk_norm else empty,
            keys=keys,
            values=values,
            keys_np=keys.numpy(),
            values_np=values.numpy(),
        )

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._head.out_features

    @torch.inference_mode()
    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """Run rows through the model.

        Args:
            rows: The tokens; their keys and values are written to the cache.
            logit_rows: int64 indices of the rows whose logits are wanted; ``None`` for all.

        Returns:
            float32 logits ``[len(logit_rows), vocab_size]``.
        """
        plan = _AttentionPlan(rows)
        config, num_rows, eps = self.config, len(rows), self.config.norm_eps
        x = self._embedding[rows.token_ids].astype(np.float32)
        update = np.zeros_like(x)
        scale = np.empty(num_rows, np.float32)
        narrow = np.empty((self.num_levels * num_rows, config.hidden_size), np.uint8)
        heads = np.empty((self.num_levels * num_rows, config.num_heads * config.head_dim), np.uint8)
        wide = np.empty((self.num_levels * num_rows, config.intermediate_size), np.uint8)
        queries = torch.empty((plan.num_sequences, config.num_kv_heads, plan.max_rows * self._group, config.head_dim))
        queries_np = queries.numpy()
        for layer in self._layers:
            kernels.add_norm_quantize(x, update, layer.attention_norm, eps, narrow, scale)
            kernels.write_qkv(
                layer.qkv(narrow, scale), layer.bias, layer.q_norm, layer.k_norm, eps, self._cos, self._sin,
                rows.positions, plan.places, plan.cells, queries_np, layer.keys_np, layer.values_np,
            )  # fmt: skip
            kernels.gather_quantize(self._attend(queries, layer, plan).numpy(), self._group, plan.cells, heads, scale)
            kernels.add_norm_quantize(x, layer.out(heads, scale), layer.mlp_norm, eps, narrow, scale)
            kernels.silu_mul_quantize(layer.gate_up(narrow, scale), wide, scale)
            update = layer.down(wide, scale)
        if logit_rows is not None:
            x, update, scale = x[logit_rows], update[logit_rows], scale[logit_rows]
            narrow = narrow[: self.num_levels * len(x)]
        kernels.add_norm_quantize(x, update, self._final_norm, eps, narrow, scale)
        return self._head(narrow, scale)

    def _attend(self, queries: Tensor, layer: _Layer, plan: "_AttentionPlan") -> Tensor:
        """Return the mixed values ``[C, G, R group, D]``; sequences side by side in the cache share one product."""
        mixed = torch.empty_like(queries)
        for first, cell, count, span, seen in plan.runs:
            shape = (count * self.config.num_kv_heads, -1, self.config.head_dim)
            keys = layer.keys[first : first + count].view(shape)[:, :span]
            values = layer.values[first : first + count].view(shape)
            scores = torch.bmm(queries[cell : cell + count].view(shape), keys.transpose(1, 2))
            kernels.mask_softmax(scores.view(count, self.config.num_kv_heads, -1, span).numpy(), self._group, *seen)
            out = mixed[cell : cell + count].view(shape)
            torch.bmm(scores[:, :, :_BLOCK], values[:, :_BLOCK], out=out)
            for block in range(_BLOCK, span, _BLOCK):
                out.baddbmm_(scores[:, :, block : block + _BLOCK], values[:, block : block + _BLOCK])
        return mixed

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """Copy cached keys and values of a sequence between slots (sources are read before targets are written)."""
        for layer in self._layers:
            layer.keys[sequence][:, targets] = layer.keys[sequence][:, sources]
            layer.values[sequence][:, targets] = layer.values[sequence][:, sources]


class _AttentionPlan:
    """Where rows go in the attention products of a pass; the same for every layer.

    ``runs`` lists stretches of adjacent sequences, which share a product: first sequence, first cell, number of sequences,
    slots spanned (a multiple of the block), and what :func:`forerun.nn.row_kernels.mask_softmax` needs of their rows.
    """

    def __init__(self, rows: Rows) -> None:
        sequences, index, counts = np.unique(rows.sequences, return_inverse=True, return_counts=True)
        firsts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        self.num_sequences, self.max_rows = len(sequences), int(counts.max())
        self.cells = np.stack((index, np.arange(len(rows)) - firsts[index]), axis=1).astype(np.int64)
        self.places = np.stack((rows.sequences, rows.slots), axis=1)
        last_slots = np.maximum.reduceat(np.maximum(rows.slots + 1, rows.lengths), firsts)
        self.runs: list[tuple[int, int, int, int, tuple[np.ndarray, ...]]] = []
        start = 0
        for stop in range(1, len(sequences) + 1):
            if stop == len(sequences) or sequences[stop] != sequences[stop - 1] + 1:
                span = -(-int(last_slots[start:stop].max()) // _BLOCK) * _BLOCK
                part = slice(int(firsts[start]), int(firsts[stop - 1] + counts[stop - 1]))
                cells = self.cells[part] - np.array([start, 0])
                seen = (cells, rows.lengths[part], rows.ancestors[part], rows.num_ancestors[part])
                self.runs.append((int(sequences[start]), start, stop - start, span, seen))
                start = stop
