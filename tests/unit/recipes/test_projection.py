"""Projections against sums done by hand, and the command that prints them."""

import json
from dataclasses import replace

import pytest

from forerun.cli.main import main
from forerun.core.errors import ConfigError
from forerun.models.config import DecoderConfig
from forerun.recipes.projection import (
    LLAMA_1B,
    LLAMA_70B,
    LLAMA_ACCEPTANCE,
    Acceptance,
    Hardware,
    project,
    projection_report,
)

SIMPLE = DecoderConfig(
    vocab_size=100, hidden_size=10, intermediate_size=20, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4,
    max_len=64,
)  # fmt: skip
"""Weights: 10 x (8 + 4 + 4 + 8) + 3 x 10 x 20 = 840 a layer, 1,000 in the head, 2,680 in all. States: 16 a token."""


def test_a_projection_is_the_sum_done_by_hand():
    hardware = Hardware(
        num_target_gpus=2, bandwidth_bytes_per_s=1000.0, target_efficiency=0.5, draft_efficiency=0.25,
        overhead_share=0.1,
    )  # fmt: skip
    acceptance = Acceptance(
        num_speculative_tokens=1, hit_rate=0.5, hit_length=3.0, miss_length=1.0, sequential_tokens=2,
        sequential_length=2.5, miss_exponent=2.0, source="made up",
    )  # fmt: skip
    found = project(hardware, acceptance, target=SIMPLE, draft=replace(SIMPLE, num_layers=1), context_tokens=0)
    verify = 2 * 2680 / (2 * 1000 * 0.5)
    draft = 2 * (840 + 1000) / (1000 * 0.25)
    assert found.floor_ms == pytest.approx(1e3 * 2.68)
    assert found.verify_ms == pytest.approx(1e3 * verify)
    assert found.draft_pass_ms == pytest.approx(1e3 * draft)
    assert found.ar == pytest.approx(0.9 / verify)
    assert found.sd == pytest.approx(0.9 * 2.5 / (verify + 2 * draft))
    # A hit lasts as long as the draft's two passes, a miss a verification and one pass more.
    assert found.draft_share == pytest.approx(2 * draft / verify)
    assert found.ssd == pytest.approx(0.9 * 2.0 / (0.5 * 2 * draft + 0.5 * (verify + draft)))
    # Two drafts miss a quarter as often, squares being assumed, and nothing else changes.
    sizes = {"target": SIMPLE, "draft": replace(SIMPLE, num_layers=1), "context_tokens": 0}
    more = project(replace(hardware, num_drafts=2), acceptance, **sizes)
    tokens = 0.875 * 3.0 + 0.125 * 1.0
    assert more.ssd == pytest.approx(0.9 * tokens / (0.875 * 2 * draft + 0.125 * (verify + draft)))
    assert replace(more, ssd=found.ssd) == found


def test_a_hidden_draft_costs_nothing():
    hardware = Hardware(draft_efficiency=1.0, overhead_share=0.0)
    found = project(hardware, replace(LLAMA_ACCEPTANCE, hit_rate=1.0))
    assert found.draft_share < 1
    assert found.ssd == pytest.approx(5.68 * found.ar)


def test_cached_states_are_read_too():
    hardware = Hardware(num_target_gpus=1, bandwidth_bytes_per_s=1000.0)
    near, far = (project(hardware, LLAMA_ACCEPTANCE, target=SIMPLE, context_tokens=tokens) for tokens in (0, 100))
    assert far.floor_ms - near.floor_ms == pytest.approx(1e3 * 100 * 2 * 2 * 1 * 4 * 2 / 1000)


def test_the_shapes_are_those_of_the_published_models():
    """69.5 and 1.24 billion weights read by a pass: 70.6 and 1.24 with the embedding that a pass does not read."""
    report = projection_report(Hardware(bandwidth_bytes_per_s=1e12, num_target_gpus=1), context_tokens=0)
    floor = report["projections"]["at the floor"]["result"]
    assert floor["verify_ms"] == pytest.approx(2 * 69.50, abs=0.03)
    assert floor["draft_pass_ms"] == pytest.approx(2 * 1.236, abs=0.002)
    assert (LLAMA_70B.num_layers, LLAMA_1B.tie_embeddings) == (80, True)


def test_with_the_reference_engines_costs_the_published_numbers_come_out():
    """Within 15% of the range that paper and reproduction span: the closed forms describe what was measured."""
    report = projection_report(Hardware(), context_tokens=0)
    found = report["projections"]["as the reference engine was measured"]["result"]
    assert found["verify_ms"] == pytest.approx(15.03, rel=1e-6)
    for method, sources in report["published"].items():
        low, high = sorted(sources.values())
        assert 0.85 * low < found[method] < 1.15 * high
    # Those in the paper's facts, from the same measurements.
    assert {batch: round(rate) for batch, rate in report["verify_bound"].items()} == {
        "1": 362, "2": 703, "4": 1349, "8": 2461, "16": 4242,
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_target_gpus": 0},
        {"target_efficiency": 1.2},
        {"draft_efficiency": 0.0},
        {"overhead_share": 1.0},
        {"num_drafts": 0},
    ],
)
def test_impossible_hardware_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Hardware(**wrong)


def test_the_command_prints_and_writes_the_same(tmp_path, capsys):
    file = tmp_path / "projection.json"
    assert main(["bench", "project", "--bandwidth", "4.8", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    text = capsys.readouterr().out
    expected = report["projections"]["as expected of this engine"]
    assert expected["assumed"]["bandwidth_bytes_per_s"] == pytest.approx(4.8e12)
    assert f"{expected['result']['ssd']:.1f}" in text
    assert all(sentence in text for sentence in report["assumptions"])


def test_a_bad_number_is_one_line(capsys):
    assert main(["bench", "project", "--overhead-share", "1.5"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
