"""A GGUF file that can't be used says so: what is wrong, and what to do."""

import contextlib
import re
import struct

import gguf.quants
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forerun.core.errors import ModelLoadError
from forerun.models.load import load_checkpoint


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match=r"none\.gguf: no such file"):
        load_checkpoint(tmp_path / "none.gguf")


@pytest.mark.parametrize("content", [b"", b"GG", b"not a model at all, but long enough to hold a header"])
def test_a_file_that_is_no_gguf(tmp_path, content):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"bad\.gguf"):
        load_checkpoint(tmp_path / "bad.gguf")


def test_a_directory_named_like_a_file(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ModelLoadError, match=r"folder\.gguf"):
        load_checkpoint(tmp_path / "folder.gguf")


def test_an_unknown_version(write_gguf):
    path = write_gguf()
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", 9)
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="version 9; versions 2 and 3"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off(write_gguf, share):
    path = write_gguf()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelLoadError, match="cut off"):
        load_checkpoint(path)


def test_a_file_cut_off_after_it_was_opened(write_gguf):
    path = write_gguf()
    checkpoint = load_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-4096])
    last = checkpoint.tensors.names()[-1]
    with pytest.raises(ModelLoadError, match="became shorter"):
        checkpoint.tensors.tensor(last)


def test_a_type_without_a_kernel_names_tensor_type_and_choices(write_gguf, tiny_config):
    values = np.zeros((tiny_config.vocab_size, 32), dtype=np.float32)
    raw = gguf.quants.quantize(values, GGMLQuantizationType.Q5_0)
    path = write_gguf(stored={"embed_tokens.weight": (raw, GGMLQuantizationType.Q5_0)})
    with pytest.raises(ModelLoadError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    for part in ("'token_embd.weight'", "Q5_0", "BF16, F16, F32, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0", "convert"):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "gpt2"}, "general.architecture='gpt2'"),
        ({"metadata": {"split.count": 2}}, "llama-gguf-split --merge"),
        ({"metadata": {"llama.expert_count": 8}}, "mixtures of experts"),
        ({"metadata": {"llama.rope.dimension_count": 4}}, "partial rotary"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "'yarn' is not implemented"),
        ({"metadata": {"llama.block_count": "two"}}, "llama.block_count='two': must be a whole number"),
        ({"metadata": {"llama.block_count": 3}}, "'layers.2.input_layernorm.weight'"),
        ({"metadata": {"llama.block_count": 4_000_000_000}}, "states 4000000000 layers"),
        ({"metadata": {"llama.block_count": 1}}, "layers.1"),
        ({"metadata": {"llama.attention.head_count_kv": 3}}, "must divide num_heads=4"),
        ({"metadata": {"llama.attention.head_count": 0}}, "num_heads=0"),
        ({"metadata": {"llama.feed_forward_length": 65}}, "but the configuration says"),
        ({"metadata": {"tokenizer.ggml.model": "llama"}}, "load the model's Hugging Face directory"),
        ({"metadata": {"tokenizer.ggml.pre": "tekken"}}, "tokenizer.ggml.pre='tekken' is not supported"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 9999}}, "tokenizer.ggml.eos_token_id=9999"),
        ({"metadata": {"tokenizer.ggml.merges": ["th"]}}, "tokenizer.ggml.merges holds 'th'"),
        ({"metadata": {"tokenizer.ggml.merges": ["q x"]}}, "join to a third"),
        ({"metadata": {"tokenizer.ggml.token_type": [1, 1]}}, "2 token types"),
        ({"metadata": {"tokenizer.ggml.tokens": ["a", "a"]}}, "all different"),
        ({"metadata": {"tokenizer.chat_template": "{% for"}}, "chat template is not valid"),
        ({"without": ("llama.block_count",)}, "'llama.block_count' is missing"),
        ({"without": ("tokenizer.ggml.tokens",)}, "'tokenizer.ggml.tokens' is missing"),
        ({"without": ("layers.1.mlp.up_proj.weight",)}, "'layers.1.mlp.up_proj.weight'"),
        ({"without": ("embed_tokens.weight",)}, "token_embd.weight"),
        ({"extra_tensors": {"blk.0.ffn_gate_inp.weight": np.zeros((2, 32), np.float32)}}, "blk.0.ffn_gate_inp"),
        ({"extra_tensors": {"rope_freqs.weight": np.ones(3, np.float32)}}, "3 divisors"),
    ],
)
def test_what_the_decoder_can_not_run_is_refused(write_gguf, changes, message):
    with pytest.raises(ModelLoadError, match=re.escape(message)):
        load_checkpoint(write_gguf(**changes))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), num_bytes=st.sampled_from([1, 4, 8]))
def test_a_damaged_header_loads_or_is_refused(write_gguf, where, value, num_bytes):
    """No damage to the header leads to any other exception."""
    path = write_gguf()
    content = bytearray(path.read_bytes())
    header_end = content.index(b"blk.1.ffn_down.weight") + 64
    start = int(where * header_end)
    content[start : start + num_bytes] = bytes([value]) * num_bytes
    path.write_bytes(content)
    with contextlib.suppress(ModelLoadError):
        load_checkpoint(path)
