"""Every family computes what ``transformers`` computes from the same files."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from forerun.models.decoder import Decoder, LayerCache
from forerun.models.export import save_huggingface
from forerun.models.fields import Fields
from forerun.models.huggingface import SafetensorsTensors, read_json
from forerun.models.huggingface_config import config_from_json

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
WINDOW = 7
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "llama-llama3-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LINEAR_ROPE}),
    "llama-wide-heads": (LlamaForCausalLM, LlamaConfig, {"head_dim": 16, "num_key_value_heads": 6}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-window": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral-window": (MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}),
}


@pytest.fixture(scope="module", params=FAMILIES, autouse=True)
def models(request, tmp_path_factory) -> tuple[PreTrainedModel, Decoder]:
    """A random model of transformers, and ours read from the files that it wrote."""
    model_class, config_class, changes = FAMILIES[request.param]
    torch.manual_seed(0)
    reference = model_class(config_class(**(SHAPE | changes))).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            # Far from the initial values, where norms are 1, biases 0 and attention nearly uniform.
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.2)
    directory = tmp_path_factory.mktemp("model")
    reference.save_pretrained(directory, max_shard_size="60KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    config = config_from_json(read_json(directory / "config.json"))
    tensors = SafetensorsTensors(directory, config)
    decoder = Decoder(config)
    for name in tensors.names():
        decoder.get_parameter(name).data = torch.from_numpy(tensors.tensor(name))
    decoder.refresh_derived()
    return reference, decoder.eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(1))


def test_logits_agree(models, tokens):
    reference, decoder = models
    with torch.inference_mode():
        expected, logits = reference(tokens).logits, decoder(tokens)
    assert expected.abs().max() > 1  # the comparison means something
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_growing_a_cache_changes_nothing(models, tokens):
    """A prompt, then pieces of several widths, then a rollback and the same tokens again."""
    _, decoder = models
    window = decoder.config.sliding_window
    caches = [LayerCache() for _ in decoder.layers]

    def run(start: int, end: int) -> torch.Tensor:
        distance = torch.arange(start, end)[:, None] - torch.arange(end)[None, :]
        mask = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        positions = torch.arange(start, end).expand(len(tokens), -1)
        hidden = decoder.hidden_states(
            tokens[:, start:end], positions_BT=positions, mask=mask[None, None], caches=caches
        )
        return decoder.lm_head(hidden)

    with torch.inference_mode():
        full = decoder(tokens)
        pieces = [run(0, 11), run(11, 12), run(12, 20)]
        for cache in caches:
            cache.truncate(15)
        pieces = [torch.cat(pieces, dim=1)[:, :15], run(15, 40)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=1e-4, atol=1e-5)


def test_transformers_reads_what_we_write(models, tokens, tmp_path):
    reference, decoder = models
    save_huggingface(decoder, tmp_path)
    again = type(reference).from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(tokens).logits, reference(tokens).logits, rtol=1e-5, atol=1e-5)


def test_the_configuration_survives_the_round_trip(models, tmp_path):
    _, decoder = models
    save_huggingface(decoder, tmp_path)
    values = read_json(tmp_path / "config.json").values
    assert config_from_json(Fields(source="config.json", values=values)) == decoder.config
