"""One decoder for the Llama, Mistral, SmolLM2, Qwen2 and Qwen3 families, in plain PyTorch.

The readable implementation: it trains, it runs on any device, and it is the slow twin that the fast CPU runner is
tested against. Shape legend: B batch, T query positions, S key positions, E hidden, H heads, G key/value heads,
D head_dim, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from forerun.models.config import DecoderConfig
from forerun.nn.rope import apply_rope, rope_frequencies, rotations


class _JoinedLinear:
    """Linear maps of one input as one; their parameters become views of its own, so nothing is held twice.

    Args:
        projections: Plain linear maps.
    """

    def __init__(self, projections: Sequence[nn.Linear]) -> None:
        self._weight = torch.cat([projection.weight.detach() for projection in projections])
        biases = [projection.bias.detach() for projection in projections if projection.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        sizes = [projection.out_features for projection in projections]
        for projection, part in zip(projections, self._weight.split(sizes), strict=True):
            projection.weight = nn.Parameter(part, requires_grad=False)

    @classmethod
    def of(cls, projections: Sequence[nn.Module]) -> "_JoinedLinear | None":
        """Join projections; ``None`` where some have a format of their own."""
        plain = [projection for projection in projections if type(projection) is nn.Linear]
        return cls(plain) if len(plain) == len(projections) else None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias)


class DecoderAttention(nn.Module):
    """Grouped-query attention with rotary embedding; optional biases (Qwen2) and QK-norm (Qwen3).

    Args:
        config: Of the decoder.
        input_size: Width of what it reads; ``None``: the decoder's.
    """

    def __init__(self, config: DecoderConfig, *, input_size: int | None = None) -> None:
        super().__init__()
        self.config = config
        bias, width = config.attention_bias, input_size or config.hidden_size
        self.q_proj = nn.Linear(width, config.num_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_kv_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self._joined: _JoinedLinear | None = None

    def join_projections(self) -> None:
        """Compute queries, keys and values by one product from now on, on the device where the weights are."""
        self._joined = _JoinedLinear.of((self.q_proj, self.k_proj, self.v_proj))

    def forward(
        self, x_BTE: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, *, mask: Tensor | None, cache: "KeyValueCache | None"
    ) -> Tensor:
        """Attend; where a cache is given, hand it this call's keys and values and attend to what it returns."""
        q_BTHD, k_BTGD, v_BTGD = self.heads(x_BTE, cos_BTD, sin_BTD)
        k_BGSD, v_BGSD = k_BTGD.transpose(1, 2), v_BTGD.transpose(1, 2)
        if cache is not None:
            k_BGSD, v_BGSD = cache.append(k_BGSD, v_BGSD)
        y_BHTD = scaled_dot_product_attention(
            q_BTHD.transpose(1, 2),
            k_BGSD,
            v_BGSD,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.config.num_heads != self.config.num_kv_heads,
        )
        return self.o_proj(y_BHTD.transpose(1, 2).reshape(*x_BTE.shape[:2], -1))

    def heads(self, x_BTE: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries ``[B, T, H, D]``, keys and values ``[B, T, G, D]``; queries and keys are rotated."""
        config = self.config
        heads = (*x_BTE.shape[:2], -1, config.head_dim)
        if self._joined is not None:
            num_rotated = config.num_heads + config.num_kv_heads
            rotated, v_BTGD = self._joined(x_BTE).view(heads).split((num_rotated, config.num_kv_heads), dim=2)
            if not config.qk_norm:
                rotated = apply_rope(rotated, cos_BTD, sin_BTD)
                q_BTHD, k_BTGD = rotated.split((config.num_heads, config.num_kv_heads), dim=2)
                return q_BTHD, k_BTGD, v_BTGD
            q_BTHD, k_BTGD = rotated.split((config.num_heads, config.num_kv_heads), dim=2)
        else:
            q_BTHD, k_BTGD = self.q_proj(x_BTE).view(heads), self.k_proj(x_BTE).view(heads)
            v_BTGD = self.v_proj(x_BTE).view(heads)
        if config.qk_norm:
            q_BTHD, k_BTGD = self.q_norm(q_BTHD), self.k_norm(k_BTGD)
        return apply_rope(q_BTHD, cos_BTD, sin_BTD), apply_rope(k_BTGD, cos_BTD, sin_BTD), v_BTGD


class DecoderMlp(nn.Module):
    """Gated MLP: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self._joined: _JoinedLinear | None = None

    def join_projections(self) -> None:
        """As :meth:`DecoderAttention.join_projections`, of the gate and what it lets through."""
        self._joined = _JoinedLinear.of((self.gate_proj, self.up_proj))

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Apply the MLP to the last dimension."""
        if self._joined is not None:
            gate, up = self._joined(x_BTE).chunk(2, dim=-1)
            return self.down_proj(silu(gate) * up)
        return self.down_proj(silu(self.gate_proj(x_BTE)) * self.up_proj(x_BTE))


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream; ``dropout`` is the share left out in training."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = DecoderAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = DecoderMlp(config)
        self.dropout = 0.0

    def forward(
        self, x_BTE: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, *, mask: Tensor | None, cache: "KeyValueCache | None"
    ) -> Tensor:
        """Return the residual stream after this layer."""
        x_BTE = x_BTE + self._drop(
            self.self_attn(self.input_layernorm(x_BTE), cos_BTD, sin_BTD, mask=mask, cache=cache)
        )
        return x_BTE + self._drop(self.mlp(self.post_attention_layernorm(x_BTE)))

    def _drop(self, update_BTE: Tensor) -> Tensor:
        return dropout(update_BTE, self.dropout) if self.training and self.dropout > 0 else update_BTE


class KeyValueCache(Protocol):
    """Keeps the keys and values of one layer."""

    def append(self, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """Take a call's keys and values; return all that its queries may attend to."""
        ...


class LayerCache:
    """Keys and values of one layer, grown by concatenation and cut by :meth:`truncate`."""

    def __init__(self) -> None:
        self.k_BGSD: Tensor | None = None
        self.v_BGSD: Tensor | None = None

    def append(self, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """Append along the sequence and return all keys and values so far."""
        if self.k_BGSD is not None and self.v_BGSD is not None:
            k_BGSD, v_BGSD = torch.cat((self.k_BGSD, k_BGSD), dim=2), torch.cat((self.v_BGSD, v_BGSD), dim=2)
        self.k_BGSD, self.v_BGSD = k_BGSD, v_BGSD
        return k_BGSD, v_BGSD

    def truncate(self, num_tokens: int) -> None:
        """Keep the first ``num_tokens`` positions."""
        if self.k_BGSD is not None and self.v_BGSD is not None:
            self.k_BGSD, self.v_BGSD = self.k_BGSD[:, :, :num_tokens], self.v_BGSD[:, :, :num_tokens]


class Decoder(nn.Module):
    """A decoder-only transformer; parameter names are Hugging Face's, without the ``model.`` prefix."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.num_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.recomputes = False
        """Whether a layer's inner values are computed again for the gradient instead of kept (checkpointing)."""
        self.refresh_derived()

    def refresh_derived(self) -> None:
        """Set what is computed rather than loaded: a tied head and the rotary frequencies.

        For a loader that replaced the parameters one by one.
        """
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        frequencies = rope_frequencies(
            head_dim=self.config.head_dim, theta=self.config.rope_theta, scaling=self.config.rope_scaling
        )
        self.register_buffer("rope_freqs", frequencies, persistent=False)

    def head(self, vocab_ids: np.ndarray | None) -> Callable[[Tensor], Tensor]:
        """Return the map from last hidden states to logits.

        Args:
            vocab_ids: Rows of the output head to keep, in order; a copy is made of them. ``None`` keeps the whole head.
        """
        if vocab_ids is None:
            return self.lm_head
        weight = self.lm_head.weight.detach()
        return partial(linear, weight=weight[torch.from_numpy(vocab_ids).to(weight.device)])

    def join_projections(self) -> None:
        """Compute what reads the same input by one product, where that is possible; for decoders that only run.

        Fewer and larger products: on a device each is a launch. For a decoder that stays on its device.
        """
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            layer.self_attn.join_projections()
            layer.mlp.join_projections()

    def set_dropout(self, share: float) -> None:
        """Leave out a share of what every attention and MLP adds, in training."""
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            layer.dropout = share

    def rotations(self, positions_BT: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines ``[B, T, D / 2]`` of the rotary angles of positions."""
        return rotations(self.get_buffer("rope_freqs"), positions_BT, dtype=dtype)

    def hidden_states(
        self,
        token_ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
        on_layer: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Return the normalised last hidden state ``[B, T, E]``.

        Args:
            token_ids_BT: Token ids.
            positions_BT: Rotary positions; ``None`` counts from 0.
            mask: Boolean ``[B, 1, T, S]``, True where a query may attend; a sliding window is the caller's to put in.
                ``None`` is causal, within the window; for a call without cached keys.
            caches: One cache per layer; it takes this call's T positions.
            on_layer: Told the number of each layer and what enters it, ``[B, T, E]``.
        """
        if positions_BT is None:
            positions_BT = torch.arange(token_ids_BT.shape[1], device=token_ids_BT.device).expand_as(token_ids_BT)
        x_BTE = self.embed_tokens(token_ids_BT)
        cos_BTD, sin_BTD = self.rotations(positions_BT, dtype=x_BTE.dtype)
        window = self.config.sliding_window
        if window is not None and mask is None and token_ids_BT.shape[1] > window:
            distance = positions_BT.unsqueeze(-1) - positions_BT.unsqueeze(-2)
            mask = ((distance >= 0) & (distance < window)).unsqueeze(1)
        for index, layer in enumerate(self.layers):
            if on_layer is not None:
                on_layer(index, x_BTE)
            if self.recomputes and caches is None and torch.is_grad_enabled():
                x_BTE = checkpoint(layer, x_BTE, cos_BTD, sin_BTD, mask=mask, cache=None, use_reentrant=False)
            else:
                x_BTE = layer(x_BTE, cos_BTD, sin_BTD, mask=mask, cache=None if caches is None else caches[index])
        return self.norm(x_BTE)

    def forward(self, token_ids_BT: Tensor) -> Tensor:
        """Return next-token logits ``[B, T, V]`` of whole sequences under a causal mask."""
        return self.lm_head(self.hidden_states(token_ids_BT))
