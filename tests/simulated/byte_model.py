"""A tiny random model over bytes, on disk as a Hugging Face directory."""

from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.export import save_huggingface
from forerun.models.tokenizer import byte_alphabet

VOCAB_SIZE = 257


def save_byte_model(directory: Path, *, num_layers: int = 4, max_len: int = 512, head_dim: int = 8) -> None:
    """Write the model; id 256 ends a text."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_layers=num_layers, num_heads=4,
        num_kv_heads=2, head_dim=head_dim, max_len=max_len, tie_embeddings=True,
    )  # fmt: skip
    save_huggingface(Decoder(config), directory)
    vocab = {character: byte for byte, character in byte_alphabet().items()} | {"<end>": 256}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<end>"])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").write_text('{"eos_token_id": 256}')
