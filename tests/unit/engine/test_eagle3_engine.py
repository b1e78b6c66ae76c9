"""Decoding with an EAGLE-3 head as users start it: the tokens are those of decoding without a draft."""

import pytest
from simulated.heads import save_random_head

from forerun import SpeculativeConfig
from forerun.cli.main import main
from forerun.core.env import cpu_info
from forerun.models.load import load_checkpoint

THREE_TOKENS = SpeculativeConfig(num_speculative_tokens=3)  # of each draft, whatever the clock says of it


@pytest.fixture(scope="module")
def head(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("head")
    save_random_head(directory, load_checkpoint(model).config, layer_ids=(1, 2, 3), vocab_ids=range(5, 250))
    return str(directory)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_head_drafts_and_changes_no_token(outputs, head, dtype):
    if dtype == "int8" and not cpu_info().has_int8_dot:
        pytest.skip("this CPU has no exact int8 products")
    expected, _ = outputs(method="none", draft=None, dtype=dtype)
    found, metrics = outputs(method="sequential", draft=head, dtype=dtype, speculative=THREE_TOKENS)
    assert found == expected
    assert metrics.num_proposed > 20


@pytest.mark.parametrize("method", ["sequential", "ssd", "auto"])
def test_a_head_drafts_beside_passes_of_fixed_shape(outputs, head, method):
    expected, _ = outputs(method="none", draft=None)
    found, metrics = outputs(method=method, draft=head, graphs="eager", speculative=THREE_TOKENS)
    assert found == expected
    assert metrics.num_proposed > 20
    assert method != "ssd" or metrics.num_look_ups > 10


@pytest.mark.slow
def test_a_head_prepares_for_outcomes_in_a_process_of_its_own(outputs, head):
    expected, _ = outputs(method="none", draft=None)
    found, metrics = outputs(method="ssd", draft=head, speculative=THREE_TOKENS)
    assert found == expected
    assert metrics.num_proposed > 20
    assert metrics.num_look_ups > 10


def test_a_head_of_another_target_is_one_line(model, tmp_path, capsys):
    save_random_head(tmp_path, load_checkpoint(model).config, layer_ids=(1, 4), vocab_ids=range(9))
    assert main(["generate", "--target", model, "--draft", str(tmp_path), "--method", "sequential", "Hello"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "from 0 to 3" in error
