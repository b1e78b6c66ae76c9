"""An EAGLE-3 head: one decoder layer that reads tokens together with the target's hidden states.

Shape legend: B batch, T positions, E hidden of the head, F hidden of the target, N layers of the target that are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from forerun.core.errors import ConfigError
from forerun.models.config import DecoderConfig
from forerun.models.decoder import DecoderAttention, DecoderMlp, KeyValueCache
from forerun.nn.rope import rope_frequencies, rotations

Attend = Callable[[DecoderAttention, Tensor, Tensor, Tensor], Tensor]
"""From an attention, what it reads, and the cosines and sines of its positions, to what it adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Eagle3Config:
    """Shape of a head.

    Attributes:
        layer: Its one layer, and the vocabulary of the tokens that it reads.
        layer_ids: Layers of the target; what enters them is read.
        target_hidden_size: Width of the target's residual stream.
        draft_vocab_size: Tokens that it can propose.
        norm_before_residual: Whether the layer adds to the normalised hidden state, and not to the hidden state itself.
        norm_before_fc: Whether the target's states are normalised together before they are projected.
        fc_norm: Whether each of them is normalised by itself.
        norm_output: Whether the state that is read with the next token is the normalised one.

    Raises:
        ConfigError: There is more than one layer, none of the target's, or a window.
    """

    layer: DecoderConfig
    layer_ids: tuple[int, ...]
    target_hidden_size: int
    draft_vocab_size: int
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False

    def __post_init__(self) -> None:
        if self.layer.num_layers != 1:
            raise ConfigError(f"an EAGLE-3 head of {self.layer.num_layers} layers: must be 1; use a head of one layer")
        if self.layer.sliding_window is not None:
            raise ConfigError(
                f"an EAGLE-3 head with sliding_window={self.layer.sliding_window}: must be none; use a head without"
            )
        if not self.layer_ids:
            raise ConfigError("an EAGLE-3 head that reads no layer of the target: name at least 1")
        if not 0 < self.draft_vocab_size <= self.layer.vocab_size:
            raise ConfigError(
                f"draft_vocab_size={self.draft_vocab_size}: must be from 1 to vocab_size={self.layer.vocab_size}; mend "
                "the configuration"
            )


class Eagle3Layer(nn.Module):
    """Attention over (token, hidden state) pairs, and an MLP, both added to the hidden state."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        layer, width = config.layer, config.layer.hidden_size
        self.input_layernorm = nn.RMSNorm(width, eps=layer.norm_eps)
        self.hidden_norm = nn.RMSNorm(width, eps=layer.norm_eps)
        self.self_attn = DecoderAttention(layer, input_size=2 * width)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=layer.norm_eps)
        self.mlp = DecoderMlp(layer)
        self.norm_before_residual = config.norm_before_residual

    def forward(
        self,
        embedded_BTE: Tensor,
        hidden_BTE: Tensor,
        cos_BTD: Tensor,
        sin_BTD: Tensor,
        *,
        attend: Attend,
    ) -> Tensor:
        """Return the hidden states that follow, ``[B, T, E]``."""
        normed_BTE = self.hidden_norm(hidden_BTE)
        pairs_BTP = torch.cat((self.input_layernorm(embedded_BTE), normed_BTE), dim=-1)
        x_BTE = normed_BTE if self.norm_before_residual else hidden_BTE
        x_BTE = x_BTE + attend(self.self_attn, pairs_BTP, cos_BTD, sin_BTD)
        return x_BTE + self.mlp(self.post_attention_layernorm(x_BTE))


class Eagle3Head(nn.Module):
    """The head; parameter names are those of published checkpoints.

    A position reads a token and the hidden state of the token *before* it: the target's, projected by :meth:`fuse`, or
    the one that the head itself gave for that token. From both it computes the hidden state of its own token, whose
    logits are those of the token after.

    Reference:
        Li et al. 2025, EAGLE-3 (arXiv 2503.01840), section 3.
    """

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.config = config
        layer, num_states = config.layer, len(config.layer_ids)
        self.embed_tokens = nn.Embedding(layer.vocab_size, layer.hidden_size)
        self.fc = nn.Linear(num_states * config.target_hidden_size, layer.hidden_size, bias=False)
        self.midlayer = Eagle3Layer(config)
        self.norm = nn.RMSNorm(layer.hidden_size, eps=layer.norm_eps)
        self.lm_head = nn.Linear(layer.hidden_size, config.draft_vocab_size, bias=False)
        if config.norm_before_fc:
            self.input_norm = nn.RMSNorm(num_states * config.target_hidden_size, eps=layer.norm_eps)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(
                [nn.RMSNorm(config.target_hidden_size, eps=layer.norm_eps) for _ in config.layer_ids]
            )
        self.refresh_derived()

    def refresh_derived(self) -> None:
        """Set what is computed rather than loaded, the rotary frequencies."""
        layer = self.config.layer
        frequencies = rope_frequencies(head_dim=layer.head_dim, theta=layer.rope_theta, scaling=layer.rope_scaling)
        self.register_buffer("rope_freqs", frequencies, persistent=False)

    def fuse(self, features: Float[Tensor, "*batch N F"]) -> Float[Tensor, "*batch E"]:
        """Return the hidden states that stand for those of the target's layers."""
        if self.config.fc_norm:
            parts = [norm(features[..., index, :]) for index, norm in enumerate(self.fc_norm)]
            features = torch.stack(parts, dim=-2)
        joined = features.flatten(-2)
        return self.fc(self.input_norm(joined) if self.config.norm_before_fc else joined)

    def forward(
        self,
        token_ids_BT: Int64[Tensor, "B T"],
        hidden_BTE: Float[Tensor, "B T E"],
        *,
        positions_BT: Int64[Tensor, "B T"],
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        attend: Attend | None = None,
    ) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B T E"]]:
        """Run the layer.

        Args:
            token_ids_BT: Tokens.
            hidden_BTE: The hidden state of the token before each.
            positions_BT: Rotary positions; only differences matter.
            mask: Boolean ``[B, 1, T, S]``, True where a position may attend; ``None`` is causal.
            cache: Takes these positions' keys and values, and returns all.
            attend: What is done instead of that, with a cache and a mask of its own.

        Returns:
            The hidden states of the tokens, to be read with the tokens that follow, and what :attr:`lm_head` reads.
        """
        embedded_BTE = self.embed_tokens(token_ids_BT)
        cos_BTD, sin_BTD = rotations(self.get_buffer("rope_freqs"), positions_BT, dtype=embedded_BTE.dtype)
        attend = attend or partial(DecoderAttention.__call__, mask=mask, cache=cache)
        out_BTE = self.midlayer(embedded_BTE, hidden_BTE, cos_BTD, sin_BTD, attend=attend)
        normed_BTE = self.norm(out_BTE)
        return (normed_BTE if self.config.norm_output else out_BTE), normed_BTE


def head_shapes(config: Eagle3Config) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every parameter."""
    layer = config.layer
    hidden, inner = layer.hidden_size, layer.intermediate_size
    q_rows, kv_rows = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
    fused = len(config.layer_ids) * config.target_hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (layer.vocab_size, hidden),
        "fc.weight": (hidden, fused),
        "midlayer.input_layernorm.weight": (hidden,),
        "midlayer.hidden_norm.weight": (hidden,),
        "midlayer.self_attn.q_proj.weight": (q_rows, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (kv_rows, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (kv_rows, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, q_rows),
        "midlayer.post_attention_layernorm.weight": (hidden,),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
        "norm.weight": (hidden,),
        "lm_head.weight": (config.draft_vocab_size, hidden),
    }
    if layer.attention_bias:
        shapes |= {
            f"midlayer.self_attn.{part}_proj.bias": (rows,)
            for part, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows))
        }
    if layer.qk_norm:
        shapes |= {f"midlayer.self_attn.{part}_norm.weight": (layer.head_dim,) for part in "qk"}
    if config.norm_before_fc:
        shapes["input_norm.weight"] = (fused,)
    if config.fc_norm:
        shapes |= {f"fc_norm.{index}.weight": (config.target_hidden_size,) for index in range(len(config.layer_ids))}
    return shapes
