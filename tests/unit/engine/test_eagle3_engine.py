"""Decoding with an EAGLE-3 head as users start it: the tokens are those of decoding without a draft."""

import pytest
from simulated.byte_model import save_byte_model
from simulated.heads import save_random_head

from forerun import LLM, SamplingParams, SpeculativeConfig
from forerun.cli.main import main
from forerun.core.env import cpu_info
from forerun.core.errors import ConfigError
from forerun.models.load import load_checkpoint

PROMPTS = ["The sea is calm, the sea is calm, the sea", "O", "abcabcabcabc"]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=16),
    SamplingParams(temperature=0.8, max_tokens=16, seed=3),
    SamplingParams(temperature=1.0, top_k=20, max_tokens=12, seed=4, logprobs=1),
]
THREE_TOKENS = SpeculativeConfig(num_speculative_tokens=3)  # of each draft, whatever the clock says of it


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    save_byte_model(directory)
    return str(directory)


@pytest.fixture(scope="module")
def head(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("head")
    save_random_head(directory, load_checkpoint(model).config, layer_ids=(1, 2, 3), vocab_ids=range(5, 250))
    return str(directory)


def outputs(model, **options):
    options = {"dtype": "float32", "max_model_len": 128, "max_num_seqs": 2} | options
    with LLM(model, **options) as llm:
        completions = llm.generate(PROMPTS, PARAMS)
        return [completion.token_ids for completion in completions], llm.last_metrics


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_head_drafts_and_changes_no_token(model, head, dtype):
    if dtype == "int8" and not cpu_info().has_int8_dot:
        pytest.skip("this CPU has no exact int8 products")
    expected, _ = outputs(model, method="none", draft=None, dtype=dtype)
    found, metrics = outputs(model, method="sequential", draft=head, dtype=dtype, speculative=THREE_TOKENS)
    assert found == expected
    assert metrics.num_proposed > 20


@pytest.mark.parametrize("method", ["sequential", "auto"])
def test_a_head_drafts_beside_passes_of_fixed_shape(model, head, method):
    expected, _ = outputs(model, method="none", draft=None)
    found, metrics = outputs(model, method=method, draft=head, graphs="eager", speculative=THREE_TOKENS)
    assert found == expected
    assert metrics.method == "sequential"
    assert metrics.num_proposed > 20


@pytest.mark.slow
def test_a_head_prepares_for_outcomes_in_a_process_of_its_own(model, head):
    expected, _ = outputs(model, method="none", draft=None)
    found, metrics = outputs(model, method="ssd", draft=head, speculative=THREE_TOKENS)
    assert found == expected
    assert metrics.num_proposed > 20
    assert metrics.num_look_ups > 10


def test_what_a_head_can_not_do_is_one_line(model, head, tmp_path, capsys):
    with pytest.raises(ConfigError, match="on a device an EAGLE-3 head prepares no outcomes"):
        LLM(model, draft=head, dtype="float32", graphs="eager", method="ssd")
    save_random_head(tmp_path, load_checkpoint(model).config, layer_ids=(1, 4), vocab_ids=range(9))
    assert main(["generate", "--target", model, "--draft", str(tmp_path), "--method", "sequential", "Hello"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "from 0 to 3" in error
