"""Lines of times: fitted, faded, and not led astray by what is no property of the work."""

import random

import pytest

from forerun.engine.speculative.time_line import TimeLine


def measured(points):
    line = TimeLine()
    for x, y in points:
        line.add(x, y)
    return line


def points(num_points, *, seed=0, level=0.018, slope=0.003):
    rng = random.Random(seed)
    return [(x, (level + slope * x) * rng.uniform(0.97, 1.03)) for x in rng.choices(range(1, 6), k=num_points)]


def test_a_line_is_found():
    line = measured(points(100))
    assert line.at(0) == pytest.approx(0.018, rel=0.1)
    assert line.at(4) == pytest.approx(0.030, rel=0.05)


def test_the_first_round_of_an_engine_compiles_and_is_forgotten():
    line = measured([(4, 3.0), *points(40)])
    assert line.at(1) == pytest.approx(0.021, rel=0.1)
    assert line.at(5) - line.at(1) == pytest.approx(0.012, rel=0.4)


def test_a_hiccup_moves_the_line_little():
    line = measured([*points(50), (3, 2.0), *points(5, seed=1)])
    assert line.at(3) == pytest.approx(0.027, rel=0.1)


def test_a_change_that_lasts_is_learned():
    line = measured([*points(50), *points(120, level=0.072, slope=0.012, seed=1)])
    assert line.at(3) == pytest.approx(0.108, rel=0.1)
