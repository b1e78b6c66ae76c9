"""Write a decoder as a Hugging Face directory, which ``transformers`` and :mod:`forerun.models.load` both read."""

import json
from pathlib import Path

from safetensors.torch import save_file

from forerun.core.errors import ConfigError, ModelLoadError
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.fields import Fields
from forerun.models.huggingface_config import config_from_json
from forerun.models.layout import parameter_shapes
from forerun.models.tokenizer import Tokenizer

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def save_huggingface(decoder: Decoder, directory: Path, *, tokenizer: Tokenizer | None = None) -> None:
    """Write ``config.json``, ``model.safetensors`` and, where a tokenizer is given, its files.

    Args:
        decoder: Saved in the type of its parameters.
        directory: Made if it does not exist; files of the same names are replaced.
        tokenizer: Written as ``tokenizer.json`` with its chat template and end ids.

    Raises:
        ConfigError: The configuration has no spelling in ``config.json``.
        OSError: The directory can't be written.
    """
    config = config_to_json(decoder.config)
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        config["eos_token_id"] = sorted(tokenizer.eos_ids)
        _write(directory / "tokenizer.json", tokenizer.to_json())
        settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_tokens}
        _write_json(directory / "tokenizer_config.json", settings)
        _write_json(directory / "generation_config.json", {"eos_token_id": sorted(tokenizer.eos_ids)})
        if tokenizer.chat_template is not None:
            _write(directory / "chat_template.jinja", tokenizer.chat_template)
    config["dtype"] = str(next(decoder.parameters()).dtype).removeprefix("torch.")
    _write_json(directory / "config.json", config)
    state = decoder.state_dict()
    stored = {
        name if name == "lm_head.weight" else f"model.{name}": state[name].detach().cpu().contiguous()
        for name in parameter_shapes(decoder.config)
    }
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})


def config_to_json(config: DecoderConfig) -> dict[str, object]:
    """Return the values of a ``config.json`` that reads back as ``config``.

    Raises:
        ConfigError: There are none: published configurations of this family can't say what ``config`` says.
    """
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_len,
            }
    values: dict[str, object] = {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_embeddings,
        "sliding_window": config.sliding_window,
    }
    if config.family in {"qwen2", "qwen3"}:
        values |= {"use_sliding_window": config.sliding_window is not None, "max_window_layers": 0}
    if _reads_back(values) != config:
        raise ConfigError(
            f"{config}: can't be written as a Hugging Face config.json of family {config.family!r}; change the fields "
            "that this family does not have (biases, QK-norm, sliding window, per-frequency rope divisors)"
        )
    return values


def _reads_back(values: dict[str, object]) -> DecoderConfig | None:
    try:
        return config_from_json(Fields(source="config.json", values=values))
    except ModelLoadError:
        return None


def _write_json(file: Path, values: dict[str, object]) -> None:
    _write(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
