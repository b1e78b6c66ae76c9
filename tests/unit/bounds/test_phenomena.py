"""What the phenomena show, on the numbers themselves; a drawing where matplotlib is there."""

import math

import pytest

from forerun.bounds.phenomena.benign import measure_benign_overfitting
from forerun.bounds.phenomena.by_width import bound_by_width
from forerun.bounds.phenomena.figures import draw_figure
from forerun.bounds.phenomena.noisy_digits import shuffled_digits
from forerun.bounds.phenomena.overparametrisation import _random_features
from forerun.bounds.phenomena.soft_bias import _order_bits, measure_soft_bias
from forerun.bounds.search import SearchConfig


def test_any_labels_are_fitted_and_the_evidence_falls_with_noise():
    rows = measure_benign_overfitting()["rows"]
    assert all(row["training_error"] == 0 for row in rows)
    assert rows[0]["test_error"] < 0.03
    assert rows[-1]["test_error"] > 0.8
    evidence = [row["log_evidence_per_example"] for row in rows]
    assert evidence == sorted(evidence, reverse=True)


def test_error_peaks_where_features_equal_examples_and_effective_dimension_does_not():
    few, at, many = (_random_features(count, 0) for count in (100, 300, 2400))
    assert at[0] > few[0] + 0.1
    assert at[0] > many[0] + 0.1
    assert few[1] < at[1] < many[1]


def test_soft_prior_is_near_the_better_hard_one_for_both_targets(tmp_path):
    result = measure_soft_bias(num_certified=2)
    for target in ("simple", "complex"):
        bounds = {row["prior"]: row["bound"] for row in result["certified"] if row["target"] == target}
        hard = [bound for name, bound in bounds.items() if name != "soft"]
        assert bounds["soft"] < min(hard) + 0.03
        assert bounds["soft"] < max(hard) - 0.02
    matplotlib_is_there = pytest.importorskip("matplotlib")
    assert matplotlib_is_there
    draw_figure("soft_bias", result, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("prior", ["soft", "hard"])
def test_polynomial_priors_sum_to_one(prior):
    for row in _order_bits(prior, 2):
        assert sum(2.0**-bits for bits in row if math.isfinite(bits)) == pytest.approx(1.0)


def test_bounds_by_width_hold_on_the_test_set():
    data = shuffled_digits(0)
    rows = bound_by_width(
        data.rows(range(900)), data.rows(range(900, 1797)), widths=(4, 32), dims=(40,),
        search=SearchConfig(num_steps=80, nat_weights=(2.0,), num_sweeps=0),
    )  # fmt: skip
    assert [row["width"] for row in rows] == [4, 32]
    assert all(row["test_error"] < row["bound"] <= 1 for row in rows)
    assert rows[1]["bound"] < 0.9
