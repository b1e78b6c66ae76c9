"""Which parameters a decoder has, whatever file they come from."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from forerun.core.errors import ModelLoadError
from forerun.models.config import DecoderConfig


class TensorReader(Protocol):
    """Reads the parameters of a checkpoint one at a time; no copy of the whole model is ever held."""

    def names(self) -> tuple[str, ...]:
        """Return the parameter names, spelled as in ``Decoder.state_dict()``; a tied head is not among them."""
        ...

    def tensor(self, name: str) -> np.ndarray:
        """Read one parameter into a new float32 array, rows (output features) first.

        Raises:
            ModelLoadError: There is no such parameter, or the file can't be read.
        """
        ...


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every parameter; a tied head is the embedding and is left out."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_rows, hidden),
        "self_attn.k_proj.weight": (kv_rows, hidden),
        "self_attn.v_proj.weight": (kv_rows, hidden),
        "self_attn.o_proj.weight": (hidden, q_rows),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.attention_bias:
        layer |= {
            "self_attn.q_proj.bias": (q_rows,),
            "self_attn.k_proj.bias": (kv_rows,),
            "self_attn.v_proj.bias": (kv_rows,),
        }
    if config.qk_norm:
        layer |= {"self_attn.q_norm.weight": (config.head_dim,), "self_attn.k_norm.weight": (config.head_dim,)}
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config.vocab_size, hidden),
        "norm.weight": (hidden,),
    }
    for index in range(config.num_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def projection_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Return the matrices of the layers by name, each with its outputs and inputs."""
    shapes = parameter_shapes(config).items()
    return {name: (shape[0], shape[1]) for name, shape in shapes if name.startswith("layers.") and len(shape) == 2}


def bytes_per_pass(config: DecoderConfig, *, bytes_per_weight: float) -> int:
    """Return how many bytes of weights one pass of the decoder must read.

    Every matrix but the embedding, of which a pass reads one row per token; the output head counts once, tied or not.

    Args:
        config: Shape of the decoder.
        bytes_per_weight: 1 for int8.
    """
    num_weights = config.vocab_size * config.hidden_size
    num_weights += sum(rows * columns for rows, columns in projection_shapes(config).values())
    return round(num_weights * bytes_per_weight)


def check_shapes(source: str, found: Mapping[str, tuple[int, ...]], config: DecoderConfig) -> None:
    """Check that the parameters found are exactly those that a decoder's configuration asks for.

    Args:
        source: File or directory, for the message.
        found: Shapes by parameter name.
        config: What the decoder expects.

    Raises:
        ModelLoadError: A parameter is missing, has another shape, or is one the decoder does not implement.
    """
    if config.num_layers > len(found):
        raise ModelLoadError(
            f"{source}: states {config.num_layers} layers but holds {len(found)} tensors; the checkpoint is incomplete "
            "or corrupt: download it again"
        )
    check_expected(
        source,
        found,
        parameter_shapes(config),
        what="the decoder",
        instead="use a dense model of the Llama, Mistral, Qwen2 or Qwen3 family",
    )


def check_expected(
    source: str,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    *,
    what: str,
    instead: str,
) -> None:
    """Check that parameters are exactly those expected.

    Args:
        source: File or directory, for the message.
        found: Shapes by parameter name.
        expected: As ``found``.
        what: What expects them, for the message.
        instead: What to do where there are others, for the message.

    Raises:
        ModelLoadError: A parameter is missing, has another shape, or is not expected.
    """
    if missing := [name for name in expected if name not in found]:
        raise ModelLoadError(
            f"{source}: {len(missing)} parameters are missing, first {missing[0]!r}; the checkpoint is incomplete: "
            "download it again, with every shard"
        )
    if extra := sorted(name for name in found if name not in expected):
        raise ModelLoadError(
            f"{source}: parameter {extra[0]!r} ({len(extra)} in all) belongs to a feature that {what} does not "
            f"implement; {instead}"
        )
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise ModelLoadError(
                f"{source}: parameter {name!r} has shape {tuple(found[name])} but the configuration says {shape}; "
                "the two do not belong together: download the checkpoint again"
            )
