"""What a study keeps: parts that are measured once, and comparisons start by start."""

import json

import numpy as np
import pytest

from forerun.core.errors import ConfigError
from forerun.planning.statistics import estimate, paired_difference
from forerun.recipes.mpc.parts import Parts


def test_a_part_is_measured_once(tmp_path):
    measured = []

    def measure():
        measured.append(1)
        return {"value": [1.5]}

    for _ in range(2):
        assert Parts(tmp_path, {"task": "x"}).get("one", measure) == {"value": [1.5]}
    assert len(measured) == 1
    assert json.loads((tmp_path / "one.json").read_text())["identity"] == {"task": "x"}


def test_parts_of_another_study_are_refused(tmp_path):
    Parts(tmp_path, {"task": "x"}).get("one", lambda: 1)
    with pytest.raises(ConfigError, match="was measured of another study"):
        Parts(tmp_path, {"task": "y"}).get("one", lambda: 1)


def test_a_part_that_failed_is_measured_again(tmp_path):
    parts = Parts(tmp_path, {})
    with pytest.raises(ZeroDivisionError):
        parts.get("one", lambda: 1 / 0)
    assert parts.get("one", lambda: 2) == 2


def test_starts_of_different_worth_do_not_hide_a_difference():
    source = np.random.default_rng(0)
    starts = [10 * source.standard_normal(20) for _ in range(3)]
    better = [group + 1.0 for group in starts]
    assert estimate(better).low < estimate(starts).high, "the intervals overlap"
    found = paired_difference(better, starts)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert paired_difference(starts, better).high == pytest.approx(-1.0)
