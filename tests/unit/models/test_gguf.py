"""What a GGUF file holds arrives in the decoder, for every supported type and architecture."""

from dataclasses import replace

import gguf.quants
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

import forerun.models.gguf
from forerun.models.decoder import Decoder
from forerun.models.gguf import SUPPORTED_TYPES, read_gguf
from forerun.models.load import build_decoder, load_checkpoint
from forerun.nn.rope import RopeScaling, rope_frequencies


def random_blocks(kind: GGMLQuantizationType, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Random stored bytes whose scales are ordinary float16 numbers."""
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // block_size, block_bytes), dtype=np.uint8)
    scales = {GGMLQuantizationType.Q4_K: (0, 2), GGMLQuantizationType.Q6_K: (block_bytes - 2,)}
    for offset in scales.get(kind, ()):
        values = rng.uniform(0.01, 0.1, (len(blocks), 1)).astype(np.float16)
        blocks[:, offset : offset + 2] = values.view(np.uint8)
    return blocks.reshape(shape[0], -1)


def stored_as(kind: GGMLQuantizationType, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        return random_blocks(kind, values.shape, rng)


@pytest.mark.parametrize("kind", sorted(SUPPORTED_TYPES), ids=lambda kind: kind.name)
def test_every_supported_type_reads_as_the_library_decodes_it(write_gguf, tiny_config, kind, monkeypatch):
    monkeypatch.setattr(forerun.models.gguf, "_CHUNK_VALUES", 1024)  # the embedding then takes many chunks
    config = replace(tiny_config, hidden_size=256)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((config.vocab_size, 256)).astype(np.float32)
    raw = stored_as(kind, values, rng)
    _, _, tensors = read_gguf(write_gguf(config=config, stored={"embed_tokens.weight": (raw, kind)}))

    read = tensors.tensor("embed_tokens.weight")

    expected = gguf.quants.dequantize(raw, kind).reshape(values.shape)
    assert read.dtype == np.float32
    assert read.flags.writeable
    np.testing.assert_array_equal(read, expected)
    assert np.isfinite(read).all()
    assert tensors.storage_type("embed_tokens.weight") == kind.name
    assert tensors.quantised == kind.name.startswith("Q")


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(GGMLQuantizationType.Q8_0, 8), (GGMLQuantizationType.Q4_0, 4), (GGMLQuantizationType.Q4_1, 4)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_quantised_values_stay_within_one_step(write_gguf, tiny_config, kind, bits):
    values = np.random.default_rng(1).standard_normal((tiny_config.vocab_size, 32)).astype(np.float32)
    raw = gguf.quants.quantize(values, kind)
    _, _, tensors = read_gguf(write_gguf(stored={"embed_tokens.weight": (raw, kind)}))

    step = 2 * np.abs(values).max(axis=1, keepdims=True) / (2**bits - 2)
    assert (np.abs(tensors.tensor("embed_tokens.weight") - values) <= 1.01 * step).all()


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_embeddings": False}),
        ("llama", {"head_dim": 16}),
        ("qwen2", {"attention_bias": True}),
        ("qwen3", {"qk_norm": True, "tie_embeddings": False}),
    ],
)
def test_architectures_read_back_what_was_written(write_gguf, tiny_config, arch, changes):
    config = replace(tiny_config, family=arch, **changes)
    torch.manual_seed(3)
    decoder = Decoder(config).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)

    checkpoint = load_checkpoint(write_gguf(config=config, arch=arch, state=decoder.state_dict()))

    assert replace(checkpoint.config, norm_eps=config.norm_eps) == config
    assert checkpoint.config.norm_eps == pytest.approx(config.norm_eps, rel=1e-6)  # the file holds it as float32
    loaded = build_decoder(checkpoint).state_dict()
    assert loaded.keys() == decoder.state_dict().keys()
    for name, values in decoder.state_dict().items():
        torch.testing.assert_close(loaded[name], values, rtol=0, atol=0, msg=name)


def test_rope_divisors_of_llama_3_1_give_its_frequencies(write_gguf, tiny_config):
    published = RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=64)
    plain = rope_frequencies(head_dim=8, theta=10000.0)
    scaled = rope_frequencies(head_dim=8, theta=10000.0, scaling=published)
    assert not torch.equal(plain, scaled)

    path = write_gguf(extra_tensors={"rope_freqs.weight": (plain / scaled).numpy()})
    decoder = build_decoder(load_checkpoint(path))

    torch.testing.assert_close(decoder.get_buffer("rope_freqs"), scaled, rtol=1e-6, atol=0)


def test_linear_rope_scaling(write_gguf):
    path = write_gguf(metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    assert load_checkpoint(path).config.rope_scaling == RopeScaling(kind="linear", factor=4.0)


def test_every_end_token_counts(write_gguf):
    """The end of turn that the metadata names, and the end of text that only its spelling tells."""
    assert load_checkpoint(write_gguf()).eos_ids == {0, 2}
    assert load_checkpoint(write_gguf(metadata={"tokenizer.ggml.eot_token_id": 5})).eos_ids == {0, 2, 5}


def test_the_head_is_the_embedding_where_it_is_tied(write_gguf):
    checkpoint = load_checkpoint(write_gguf())
    decoder = build_decoder(checkpoint, dtype=torch.bfloat16)
    assert "lm_head.weight" not in checkpoint.tensors.names()
    assert decoder.lm_head.weight is decoder.embed_tokens.weight
    assert decoder.embed_tokens.weight.dtype == torch.bfloat16
    assert not decoder.training
