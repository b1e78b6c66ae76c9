"""The shape of a decoder-only language model, independent of the file format it came from."""

from dataclasses import dataclass
from typing import Literal

from forerun.core.errors import ConfigError
from forerun.nn.rope import RopeScaling

Family = Literal["llama", "mistral", "qwen2", "qwen3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Shape of a Llama-like decoder (Llama, Mistral, SmolLM2, Qwen2, Qwen3).

    Attributes:
        family: Which published family; it names the file mapping, the fields below fix the arithmetic.
        vocab_size: Rows of the embedding, padding rows included.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gated MLP.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key/value heads; divides ``num_heads`` (grouped-query attention).
        head_dim: Width of one head.
        max_len: Longest context in tokens.
        rope_theta: Base of the rotary embedding.
        rope_scaling: Stretch of the rotary frequencies, where the model has one.
        norm_eps: Added to the mean square in RMSNorm.
        tie_embeddings: Whether the output head is the embedding.
        attention_bias: Whether q, k and v projections have a bias (Qwen2).
        qk_norm: Whether q and k heads are RMS-normalised before the rotary embedding (Qwen3).
        sliding_window: Keys visible to a query, itself included; ``None`` for all (Mistral v0.1 has 4096).

    Raises:
        ConfigError: A size is not positive, or two sizes do not go together.
    """

    family: Family = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_len: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
            "max_len", "rope_theta", "norm_eps",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be greater than 0; mend the configuration")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(
                f"sliding_window={self.sliding_window}: must be at least 1 token; for full attention set it to None"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_kv_heads={self.num_kv_heads}: must divide num_heads={self.num_heads}; mend the configuration"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim={self.head_dim}: must be even, for the rotary embedding turns pairs; mend the configuration"
            )
        scaling = self.rope_scaling
        if scaling is not None and not all(divisor > 0 for divisor in (scaling.factor, *scaling.divisors)):
            raise ConfigError(f"{scaling}: factor and divisors must be greater than 0; mend the configuration")
        if scaling is not None and scaling.kind == "divisors" and len(scaling.divisors) != self.head_dim // 2:
            raise ConfigError(
                f"rope_scaling has {len(scaling.divisors)} divisors: must be head_dim / 2 = {self.head_dim // 2}; mend "
                "the configuration"
            )
