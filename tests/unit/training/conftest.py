"""A tiny target on disk, and a corpus sampled from it."""

from pathlib import Path

import pytest
from simulated.byte_model import save_byte_model

from forerun.models.load import load_checkpoint
from forerun.training.distillation.corpus import CorpusConfig
from forerun.training.distillation.train import DraftTrainingConfig


@pytest.fixture(scope="session")
def target(tmp_path_factory):
    """A random four-layer decoder over bytes, as a Hugging Face directory."""
    directory: Path = tmp_path_factory.mktemp("target")
    save_byte_model(directory)
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
