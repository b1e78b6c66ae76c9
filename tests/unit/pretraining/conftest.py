"""A small corpus of made-up sentences, prepared once."""

import random
from pathlib import Path

import pytest
import torch

from forerun.pretraining.config import PretrainConfig, ShapeConfig
from forerun.pretraining.prepare import PrepareConfig, prepare_corpus
from forerun.pretraining.prepared_corpus import PreparedCorpus, open_corpus

NOUNS = ("duck", "river", "stone", "lamp", "garden", "letter", "window", "road")
VERBS = ("sees", "carries", "follows", "hides", "finds", "paints")


def sentences(seed: int, count: int = 40) -> str:
    rng = random.Random(seed)
    return " ".join(f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}." for _ in range(count))


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for seed in range(60):
        (folder / f"{seed:02}.txt").write_text(sentences(seed))
    return folder


@pytest.fixture(scope="session")
def prepared(texts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare_corpus(str(texts), folder, PrepareConfig(vocab_size=300, min_split_tokens=64))
    return folder


@pytest.fixture(scope="session")
def corpus(prepared) -> PreparedCorpus:
    return open_corpus(prepared)


def tiny_config(**changes) -> PretrainConfig:
    options = {
        "shape": ShapeConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2),
        "num_epochs": 2,
        "sequence_tokens": 32,
        "batch_sequences": 8,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "unique_tokens": 4000,
        "checkpoint_every": 4,
    }
    return PretrainConfig(**(options | changes))


@pytest.fixture(scope="session")
def tiny():
    return tiny_config


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
