"""Tiny model files written on the spot, so that each test can make them wrong in one way."""

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.tokenizer import byte_alphabet

GgufWriterFixture = Callable[..., Path]

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "Ġ the", "a n", "an d")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def gguf_tokens() -> list[str]:
    """A byte-level vocabulary: special tokens, all bytes, and what the merges make."""
    return [*SPECIAL_TOKENS, *byte_alphabet().values(), *(merge.replace(" ", "") for merge in MERGES)]


def gguf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in TOP_NAMES:
        return f"{TOP_NAMES[module]}.{kind}"
    _, index, part = module.split(".", 2)
    return f"blk.{index}.{LAYER_NAMES[part]}.{kind}"


def interleave(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k: row i of the first half, row i of the second half, and so on."""
    order = []
    width = rows.shape[0] // num_heads
    for head in range(num_heads):
        for pair in range(width // 2):
            order += [head * width + pair, head * width + width // 2 + pair]
    return rows[order]


@pytest.fixture
def tiny_config() -> DecoderConfig:
    return DecoderConfig(
        vocab_size=len(gguf_tokens()),
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_len=64,
        tie_embeddings=True,
    )


@pytest.fixture
def write_gguf(tmp_path: Path, tiny_config: DecoderConfig) -> GgufWriterFixture:
    """Return a function that writes a GGUF file; every argument changes one thing about a file that loads."""

    def write(
        *,
        config: DecoderConfig = tiny_config,
        arch: str = "llama",
        state: Mapping[str, torch.Tensor] | None = None,
        stored: Mapping[str, tuple[np.ndarray, GGMLQuantizationType]] | None = None,
        extra_tensors: Mapping[str, np.ndarray] | None = None,
        metadata: Mapping[str, object] | None = None,
        without: tuple[str, ...] = (),
    ) -> Path:
        """Write a file.

        Args:
            config: Shape of the model.
            arch: Architecture named in the file.
            state: Parameters by the decoder's names; random ones where it is ``None``.
            stored: Raw blocks and type of parameters that are not to be float32.
            extra_tensors: By the file's own names.
            metadata: Replaces or adds values.
            without: Keys and tensors (by the decoder's names) left out.
        """
        path = tmp_path / f"{arch}.gguf"
        writer = gguf.GGUFWriter(path, arch)
        values: dict[str, object] = {
            f"{arch}.context_length": config.max_len,
            f"{arch}.embedding_length": config.hidden_size,
            f"{arch}.block_count": config.num_layers,
            f"{arch}.feed_forward_length": config.intermediate_size,
            f"{arch}.attention.head_count": config.num_heads,
            f"{arch}.attention.head_count_kv": config.num_kv_heads,
            f"{arch}.attention.key_length": config.head_dim,
            f"{arch}.attention.layer_norm_rms_epsilon": config.norm_eps,
            f"{arch}.rope.freq_base": config.rope_theta,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": gguf_tokens(),
            "tokenizer.ggml.token_type": [3] * len(SPECIAL_TOKENS) + [1] * (len(gguf_tokens()) - len(SPECIAL_TOKENS)),
            "tokenizer.ggml.merges": list(MERGES),
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.chat_template": TEMPLATE,
        } | dict(metadata or {})
        for key, value in values.items():
            if key not in without:
                _add(writer, key, value)
        torch.manual_seed(0)
        parameters = Decoder(config).state_dict() if state is None else state
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        for name, parameter in parameters.items():
            if name in without or (name == "lm_head.weight" and config.tie_embeddings):
                continue
            if stored is not None and name in stored:
                raw, kind = stored[name]
                writer.add_tensor(gguf_name(name), raw, raw_dtype=kind)
                continue
            rows = parameter.numpy()
            projection = name.split(".")[-2]
            if arch == "llama" and projection in heads:
                rows = interleave(rows, heads[projection])
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(rows))
        for name, rows in (extra_tensors or {}).items():
            writer.add_tensor(name, rows)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        raise TypeError(f"{key}={value!r}")
