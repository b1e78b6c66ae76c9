"""The decoder's configuration out of a Hugging Face ``config.json``."""

from typing import get_args

from forerun.core.errors import ModelLoadError
from forerun.models.config import DecoderConfig, Family
from forerun.models.fields import Fields
from forerun.nn.rope import RopeScaling

_FAMILIES: tuple[Family, ...] = get_args(Family)
_QWEN3_HEAD_DIM = 128  # what the published configuration class assumes where the file is silent
_MISTRAL_WINDOW = 4096  # likewise; files that mean "none" say null


def config_from_json(fields: Fields) -> DecoderConfig:
    """Translate the values of a ``config.json``.

    Raises:
        ModelLoadError: A value is missing or malformed, or the model needs something the decoder does not implement.
    """
    family = _family(fields)
    _reject_unsupported(fields, family)
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    default_head_dim = _QWEN3_HEAD_DIM if family == "qwen3" else hidden_size // max(num_heads, 1)
    theta, scaling = _rope(fields)
    return DecoderConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.integer("head_dim", default_head_dim),
        max_len=fields.integer("max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        sliding_window=_sliding_window(fields, family),
    )


def _family(fields: Fields) -> Family:
    model_type = fields.text("model_type")
    for family in _FAMILIES:
        if family == model_type:
            return family
    raise ModelLoadError(
        f"{fields.source}: model_type={model_type!r} is not supported; supported are {', '.join(_FAMILIES)}; choose a "
        "model of one of these families"
    )


def _reject_unsupported(fields: Fields, family: Family) -> None:
    """Refuse what would load and then compute something else."""
    activation = fields.text("hidden_act", "silu")
    if activation != "silu":
        raise ModelLoadError(
            f"{fields.source}: hidden_act={activation!r} is not implemented; only 'silu' is; use another model"
        )
    if "quantization_config" in fields:
        raise ModelLoadError(
            f"{fields.source}: has a quantization_config, whose formats are not implemented; use the unquantised "
            "model or a GGUF file"
        )
    for key in ("mlp_bias", *(("attention_bias",) if family != "qwen2" else ())):
        if fields.flag(key, False):
            raise ModelLoadError(f"{fields.source}: {key}=true is not implemented; use a model without these biases")


def _rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Return theta and the scaling; ``rope_parameters`` (transformers 5) and ``rope_scaling`` (before) both count."""
    stated = fields.group("rope_parameters") or fields.group("rope_scaling")
    theta = fields.real("rope_theta", 10000.0)
    if stated is None:
        return theta, None
    theta = stated.real("rope_theta", theta)
    if stated.real("partial_rotary_factor", fields.real("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelLoadError(f"{fields.source}: partial_rotary_factor is not 1: not implemented; use another model")
    kind = stated.text("rope_type", stated.text("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=stated.real("factor"))
    if kind == "llama3":
        return theta, RopeScaling(
            kind="llama3",
            factor=stated.real("factor"),
            low_freq_factor=stated.real("low_freq_factor"),
            high_freq_factor=stated.real("high_freq_factor"),
            original_max_len=stated.integer("original_max_position_embeddings"),
        )
    raise ModelLoadError(
        f"{fields.source}: rope type {kind!r} is not implemented; supported are default, linear and llama3; use a "
        "model without it"
    )


def _sliding_window(fields: Fields, family: Family) -> int | None:
    """Return the window that every layer has; layers that differ among themselves are not implemented."""
    if family == "mistral":
        absent = "sliding_window" not in fields.values
        return _MISTRAL_WINDOW if absent else fields.integer("sliding_window", 0) or None
    if family == "llama" or not fields.flag("use_sliding_window", False):
        return None
    num_layers, first = fields.integer("num_hidden_layers"), fields.integer("max_window_layers", 28)
    kinds = fields.strings(
        "layer_types", ["full_attention" if index < first else "sliding_attention" for index in range(num_layers)]
    )
    if all(kind == "full_attention" for kind in kinds):
        return None
    if all(kind == "sliding_attention" for kind in kinds):
        return fields.integer("sliding_window")
    raise ModelLoadError(
        f"{fields.source}: use_sliding_window=true with layers of different attention ({', '.join(sorted(set(kinds)))})"
        ": not implemented; set use_sliding_window to false if you stay within the window, or use another model"
    )
