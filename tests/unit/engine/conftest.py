"""A model of a few bytes, and its decoding as users start it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from simulated.byte_model import save_byte_model

from forerun import LLM, SamplingParams
from forerun.engine.outputs import DecodeMetrics

PROMPTS = ["The sea is calm, the sea is calm, the sea", "O", "abcabcabcabc"]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=16),
    SamplingParams(temperature=0.8, max_tokens=16, seed=3),
    SamplingParams(temperature=1.0, top_k=20, max_tokens=12, seed=4, logprobs=1),
]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a byte-level model."""
    directory = tmp_path_factory.mktemp("model")
    save_byte_model(directory)
    return str(directory)


@pytest.fixture
def outputs(model: str) -> Callable[..., tuple[list[Sequence[int]], DecodeMetrics]]:
    """Return a function from options of :class:`forerun.LLM` to the tokens of a few prompts, and what was counted."""

    def decode(**options: Any) -> tuple[list[Sequence[int]], DecodeMetrics]:
        options = {"dtype": "float32", "max_model_len": 128, "max_num_seqs": 2} | options
        with LLM(model, **options) as llm:
            completions = llm.generate(PROMPTS, PARAMS)
            return [completion.token_ids for completion in completions], llm.last_metrics

    return decode
