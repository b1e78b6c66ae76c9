"""A tiny target on disk, and a corpus sampled from it."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.export import save_huggingface
from forerun.models.load import load_checkpoint
from forerun.models.tokenizer import byte_alphabet
from forerun.training.distillation.corpus import CorpusConfig
from forerun.training.distillation.train import DraftTrainingConfig

VOCAB_SIZE = 257


@pytest.fixture(scope="session")
def target(tmp_path_factory):
    """A random four-layer decoder over bytes, as a Hugging Face directory."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_layers=4, num_heads=4, num_kv_heads=2,
        head_dim=8, max_len=512, tie_embeddings=True,
    )  # fmt: skip
    directory: Path = tmp_path_factory.mktemp("target")
    save_huggingface(Decoder(config), directory)
    vocab = {character: byte for byte, character in byte_alphabet().items()} | {"<end>": 256}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<end>"])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").write_text('{"eos_token_id": 256}')
    return load_checkpoint(directory)


@pytest.fixture(scope="session")
def training_config():
    return DraftTrainingConfig(
        corpus=CorpusConfig(texts_per_shard=6, max_tokens=12, max_prompt_tokens=160, batch_size=3),
        num_shards=3,
        layer_ids=(0, 3),
        vocab_size=200,
        num_steps=4,
        batch_tokens=256,
    )
