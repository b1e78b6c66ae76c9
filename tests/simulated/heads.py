"""Random EAGLE-3 heads, and the same arithmetic once more: float64, one position at a time, from the published text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from forerun.models.config import DecoderConfig
from forerun.models.eagle3 import Eagle3Config, Eagle3Head, head_shapes
from forerun.models.eagle3_file import save_eagle3
from forerun.models.eagle3_runner import fill_head


def random_head_weights(config: Eagle3Config, *, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.uniform(0.5, 1.5, shape) if "norm" in name else rng.standard_normal(shape) * (1.5 / shape[-1] ** 0.5)
        ).astype(np.float32)
        for name, shape in head_shapes(config).items()
    }


def save_random_head(
    directory: Path, target: DecoderConfig, *, layer_ids: tuple[int, ...], vocab_ids: Sequence[int], seed: int = 0
) -> Eagle3Head:
    """Write a head for a target, with layers of the target's shape."""
    layer = DecoderConfig(
        vocab_size=target.vocab_size, hidden_size=target.hidden_size, intermediate_size=48, num_layers=1, num_heads=4,
        num_kv_heads=2, head_dim=8, max_len=target.max_len,
    )  # fmt: skip
    config = Eagle3Config(
        layer=layer,
        layer_ids=layer_ids,
        target_hidden_size=target.hidden_size,
        draft_vocab_size=len(vocab_ids),
    )
    head = fill_head(config, random_head_weights(config, seed=seed).__getitem__, dtype=torch.float32)
    save_eagle3(head, directory, vocab_ids=np.array(vocab_ids))
    return head


@dataclass(frozen=True, kw_only=True)
class SlowHead:
    """The head in float64.

    Attributes:
        config: Its shape.
        weights: By name.
    """

    config: Eagle3Config
    weights: dict[str, np.ndarray]

    def logits(self, tokens: Sequence[int], features: np.ndarray) -> np.ndarray:
        """Return the logits after each token but the first.

        Args:
            tokens: A text.
            features: The target's hidden states ``[n, layers, hidden]`` of its first n tokens; for the rest the head's
                own stand in.
        """
        keys: list[np.ndarray] = []
        values: list[np.ndarray] = []
        logits: list[np.ndarray] = []
        own: dict[int, np.ndarray] = {}
        for position in range(1, len(tokens)):
            before = position - 1
            hidden = self._fused(features[before]) if before < len(features) else own[before]
            out = self._layer(self._weight("embed_tokens")[tokens[position]], hidden, position, keys, values)
            normed = self._norm("norm", out)
            own[position] = normed if self.config.norm_output else out
            logits.append(self._weight("lm_head") @ normed)
        return np.array(logits)

    def _weight(self, name: str) -> np.ndarray:
        return self.weights[f"{name}.weight"].astype(np.float64)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return self._weight(name) * x / np.sqrt(np.mean(x * x) + self.config.layer.norm_eps)

    def _fused(self, states: np.ndarray) -> np.ndarray:
        parts = list(states.astype(np.float64))
        if self.config.fc_norm:
            parts = [self._norm(f"fc_norm.{index}", part) for index, part in enumerate(parts)]
        joined = np.concatenate(parts)
        return self._weight("fc") @ (self._norm("input_norm", joined) if self.config.norm_before_fc else joined)

    def _rotated(self, heads: np.ndarray, position: int) -> np.ndarray:
        width = self.config.layer.head_dim
        angles = position * self.config.layer.rope_theta ** (-np.arange(0, width, 2) / width)
        first, second = heads[:, : width // 2], heads[:, width // 2 :]
        return np.concatenate(
            [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=1
        )

    def _layer(
        self, embedded: np.ndarray, hidden: np.ndarray, position: int, keys: list[np.ndarray], values: list[np.ndarray]
    ) -> np.ndarray:
        layer, name = self.config.layer, "midlayer.self_attn"
        normed = self._norm("midlayer.hidden_norm", hidden)
        pair = np.concatenate([self._norm("midlayer.input_layernorm", embedded), normed])
        q, k, v = ((self._weight(f"{name}.{part}_proj") @ pair).reshape(-1, layer.head_dim) for part in "qkv")
        if layer.qk_norm:
            q = np.array([self._norm(f"{name}.q_norm", head) for head in q])
            k = np.array([self._norm(f"{name}.k_norm", head) for head in k])
        keys.append(self._rotated(k, position))
        values.append(v)
        q = self._rotated(q, position)
        mixed = []
        for head in range(layer.num_heads):
            group = head // (layer.num_heads // layer.num_kv_heads)
            scores = np.array([q[head] @ key[group] for key in keys]) / layer.head_dim**0.5
            shares = np.exp(scores - scores.max())
            mixed.append(sum(share * value[group] for share, value in zip(shares / shares.sum(), values, strict=True)))
        x = (normed if self.config.norm_before_residual else hidden) + self._weight(f"{name}.o_proj") @ np.concatenate(
            mixed
        )
        inner = self._norm("midlayer.post_attention_layernorm", x)
        gate, up = self._weight("midlayer.mlp.gate_proj") @ inner, self._weight("midlayer.mlp.up_proj") @ inner
        return x + self._weight("midlayer.mlp.down_proj") @ (gate / (1 + np.exp(-gate)) * up)
