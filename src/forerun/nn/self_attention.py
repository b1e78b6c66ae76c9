"""Multi-head self-attention of dense sequences, with keys and values that a later call can go on from."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyValues:
    """Keys and values of the tokens seen so far.

    Attributes:
        keys: One row for each head and token.
        values: Alike.
    """

    keys: Float[Tensor, "batch heads tokens head_dim"]
    values: Float[Tensor, "batch heads tokens head_dim"]


class SelfAttention(nn.Module):
    """Projects to queries, keys and values, attends, and projects back.

    Args:
        width: Of the tokens.
        num_heads: Heads.
        head_dim: Width of each; heads x head_dim need not be ``width``.
        is_causal: Whether a token sees only itself and those before it.
        has_bias: Whether the projection to queries, keys and values has a bias; the one back has.
        dropout: Share of attention weights and of outputs that training drops.
    """

    def __init__(
        self, width: int, *, num_heads: int, head_dim: int, is_causal: bool, has_bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads, self._is_causal, self._dropout = num_heads, is_causal, dropout
        self.to_qkv = nn.Linear(width, 3 * num_heads * head_dim, bias=has_bias)
        self.to_out = nn.Sequential(nn.Linear(num_heads * head_dim, width), nn.Dropout(dropout))

    def forward(self, tokens_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Attend within each sequence."""
        queries, keys, values = self._projected(tokens_BTC)
        return self._attended(queries, keys, values, is_causal=self._is_causal)

    def extend(
        self, tokens_BTC: Float[Tensor, "B T C"], past: KeyValues | None
    ) -> tuple[Float[Tensor, "B C"], KeyValues]:
        """Take the tokens that follow those of ``past``, and attend from the last one to all.

        Args:
            tokens_BTC: The new tokens.
            past: What an earlier call returned; ``None`` for none.

        Returns:
            The output at the last token, and the keys and values of all tokens so far.
        """
        queries, keys, values = self._projected(tokens_BTC)
        if past is not None:
            keys, values = torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2)
        out = self._attended(queries[:, :, -1:], keys, values, is_causal=False)
        return out[:, 0], KeyValues(keys=keys, values=values)

    def _projected(self, tokens_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.to_qkv(tokens_BTC).chunk(3, -1)
        )
        return queries, keys, values

    def _attended(self, queries: Tensor, keys: Tensor, values: Tensor, *, is_causal: bool) -> Tensor:
        mixed = scaled_dot_product_attention(
            queries, keys, values, is_causal=is_causal, dropout_p=self._dropout if self.training else 0.0
        )
        return self.to_out(mixed.transpose(1, 2).flatten(2))


def feed_forward(width: int, hidden: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Return Linear, GELU, Linear, with dropout after each linear map's output.

    Args:
        width: Of the tokens.
        hidden: Of the layer between.
        dropout: Share of numbers that training drops.
    """
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
    )
