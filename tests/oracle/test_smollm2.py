"""The embedded SmolLM2: its file read by the ``gguf`` package and run by ``transformers`` is the oracle."""

import json
import math
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from forerun.models.checkpoint import Checkpoint
from forerun.models.decoder import Decoder, LayerCache
from forerun.models.export import save_huggingface
from forerun.models.load import build_decoder, default_model_path, load_checkpoint
from forerun.models.tokenizer import Tokenizer

pytestmark = [pytest.mark.model, pytest.mark.slow]

TEXT = (
    "The lighthouse keeper counted 27 ships before dusk, wrote each name in a ledger, and lit the lamp.\n\n"
    "def area(radius):\n    return 3.14159 * radius ** 2\n\n"
    "Q: Which planet is largest? A: Jupiter, whose mass exceeds that of all others together — café, naïve, 漢字."
)
HF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint("default")


@pytest.fixture(scope="module")
def decoder(checkpoint) -> Decoder:
    return build_decoder(checkpoint)


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    """SmolLM2-135M in transformers, with its published sizes and the weights as the library reads them."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        shapes = {name: tuple(values.shape) for name, values in LlamaForCausalLM(config).state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    for tensor in gguf.GGUFReader(default_model_path()).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        layer, _, part = tensor.name.removeprefix("blk.").removesuffix(".weight").partition(".")
        if part in {"attn_q", "attn_k"}:
            heads = 9 if part == "attn_q" else 3
            rows = np.arange(heads * 64).reshape(heads, 32, 2)
            values = values[np.concatenate([rows[:, :, 0], rows[:, :, 1]], axis=1).ravel()]
        name = {"token_embd": "embed_tokens", "output_norm": "norm"}.get(layer, f"layers.{layer}.{HF_NAMES.get(part)}")
        state[f"model.{name}.weight"] = torch.from_numpy(np.array(values, dtype=np.float32))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    assert {name: tuple(values.shape) for name, values in state.items()} == shapes
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def test_logits_agree_on_real_text(reference, decoder, checkpoint):
    tokens = torch.tensor([checkpoint.tokenizer.encode(TEXT)])
    with torch.inference_mode():
        expected, logits = reference(tokens).logits, decoder(tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)
    # Both could be wrong alike; a misread model would be near the log(49152) = 10.8 nats of a uniform guess.
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
    assert loss < 0.5 * math.log(49152)


def test_greedy_text_agrees(reference, decoder, checkpoint):
    prompt = checkpoint.tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}])
    expected = reference.generate(
        torch.tensor([prompt]),
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=sorted(checkpoint.eos_ids),
        pad_token_id=0,
    )[0, len(prompt) :].tolist()

    caches = [LayerCache() for _ in decoder.layers]
    answer: list[int] = []
    fed, num_cached = prompt, 0
    with torch.inference_mode():
        while len(answer) < 24 and not checkpoint.eos_ids.intersection(answer):
            positions = torch.arange(num_cached, num_cached + len(fed))
            mask = positions[:, None] >= torch.arange(num_cached + len(fed))[None, :]
            hidden = decoder.hidden_states(
                torch.tensor([fed]), positions_BT=positions[None], mask=mask[None, None], caches=caches
            )
            num_cached += len(fed)
            fed = [int(decoder.lm_head(hidden[:, -1]).argmax())]
            answer += fed

    assert answer == expected
    assert "Paris" in checkpoint.tokenizer.decode(answer)


def test_transformers_builds_the_same_tokenizer(checkpoint):
    """Theirs leaves out the cut before digits, so the texts here have no digit after a space."""
    path = default_model_path()
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = checkpoint.tokenizer
    texts = [
        "Ein Mädchen, it's they'll — naïve café; 漢字 and 한국어\n\n\tindented   spaces ",
        "x1=y2; def f(a):\r\n    return [a]",
        "👩‍👩‍👧 🏳️‍🌈 e\u0301 हिन्दी العربية",
        "<|im_start|>user\nHello<|im_end|>\n",
    ]
    for text in texts:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert theirs.get_vocab() == ours.vocab


def test_transformers_reads_the_tokenizer_we_write(checkpoint, tmp_path, tiny_decoder):
    ours = checkpoint.tokenizer
    save_huggingface(tiny_decoder, tmp_path, tokenizer=ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == ours.encode(TEXT)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True)
    assert rendered["input_ids"] == ours.apply_chat_template(messages)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    again: Tokenizer = load_checkpoint(tmp_path).tokenizer
    assert again.vocab_digest() == ours.vocab_digest()
    assert [again.token_bytes(token_id) for token_id in range(0, 49152, 97)] == [
        ours.token_bytes(token_id) for token_id in range(0, 49152, 97)
    ]


@pytest.fixture
def tiny_decoder(checkpoint) -> Decoder:
    shape = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 8,
    }
    return Decoder(replace(checkpoint.config, **shape))
