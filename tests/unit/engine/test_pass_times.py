"""Times of passes by rows and texts: found from what there is, kept when the machine changes."""

import random
from itertools import pairwise

import pytest
from simulated.rounds import HICCUP, flat_then_rising

from forerun.engine.speculative.load import Load
from forerun.engine.speculative.pass_times import PassSize, PassTimes


def pass_s(size, *, read_s=6e-6, seen_s=1e-6):
    return flat_then_rising(size.num_rows) + read_s * size.num_read + seen_s * size.num_seen


def size(num_requests, length, text):
    return PassSize.of(Load(num_requests=num_requests, num_context=num_requests * text), length)


def timed(sizes, *, noise=0.0, hiccups=0.0, factor=1.0, times=None, **costs):
    rng, times = random.Random(1), times or PassTimes()
    for one in sizes:
        slower = max(0.5, rng.gauss(1.0, noise)) * (HICCUP if rng.random() < hiccups else 1.0)
        times.add(one, factor * slower * pass_s(one, **costs))
    return times


ROUNDS = ((1, 4), (4, 2), (16, 0), (16, 1), (4, 0))
MIXED = [size(num_requests, length, text) for text in (100, 600, 150) for num_requests, length in ROUNDS]


@pytest.mark.parametrize(("read_s", "seen_s"), [(6e-6, 5e-7), (5e-7, 2e-6), (0.0, 0.0)])
def test_rows_and_texts_are_told_apart(read_s, seen_s):
    costs = {"read_s": read_s, "seen_s": seen_s}
    times = timed(MIXED * 10, noise=0.1, hiccups=0.01, **costs)
    for one in (size(16, 1, 600), size(8, 1, 400), size(4, 3, 100), size(16, 0, 1000)):
        assert times.at(one) == pytest.approx(pass_s(one, **costs), rel=0.15), one


def test_rows_alone_do_not_tell_the_time():
    """The negative control: without texts, one of two passes as wide is expected far off."""
    times = PassTimes()
    for one in MIXED * 10:
        times.add(PassSize(num_rows=one.num_rows, num_read=0, num_seen=0), pass_s(one))
    expected_s = times.at(PassSize(num_rows=32, num_read=0, num_seen=0))
    assert max(abs(expected_s / pass_s(size(16, 1, text)) - 1) for text in (100, 600)) > 0.2


def test_the_first_pass_says_that_fewer_rows_take_as_long_and_more_in_proportion():
    times = PassTimes()
    assert times.at(size(4, 1, 0)) is None
    assert not times.knows(size(4, 1, 0))
    for _ in range(4):
        times.add(size(4, 1, 0), 0.02)
    assert [times.at(size(num, 1, 0)) for num in (1, 4, 8, 16)] == pytest.approx([0.02, 0.02, 0.04, 0.08], rel=0.03)
    assert times.knows(size(4, 1, 0))
    assert not times.knows(size(16, 1, 0))


def test_where_arithmetic_begins_to_count_is_found_between_powers_of_two():
    """Six rows are as cheap as four here, and eight are not: a line from four to eight is 5% off."""
    times = timed([size(2, length, 100) for length in (1, 2, 3)] * 20)
    for length in (1, 2, 3):
        assert times.at(size(2, length, 100)) == pytest.approx(pass_s(size(2, length, 100)), rel=0.01), length


def test_a_first_pass_that_was_something_else_is_forgotten():
    times = PassTimes()
    times.add(size(1, 4, 100), 3.0)
    times = timed(MIXED, times=times)
    assert times.at(size(1, 4, 100)) == pytest.approx(pass_s(size(1, 4, 100)), rel=0.1)


def test_where_a_machine_slows_down_so_does_what_is_not_seen_any_more():
    times = timed(MIXED * 5)
    before = [times.at(size(16, length, 600)) for length in (0, 1)]
    times = timed(MIXED[:2] * 40, factor=2.0, times=times)
    after = [times.at(size(16, length, 600)) for length in (0, 1)]
    assert after == pytest.approx([2 * value for value in before], rel=0.25)


def test_one_hiccup_changes_little_and_more_rows_never_take_less():
    times = timed(MIXED * 2, noise=0.1)
    before = times.at(size(4, 2, 100))
    times.add(size(4, 2, 100), 1.0)
    assert times.at(size(4, 2, 100)) == pytest.approx(before, rel=0.15)
    by_rows = [times.at(PassSize(num_rows=rows, num_read=400, num_seen=1200)) for rows in range(1, 300)]
    assert all(more >= 0.999 * fewer for fewer, more in pairwise(by_rows))


@pytest.mark.parametrize("num_requests", [1, 16])
def test_whatever_comes_variances_stay_finite_and_above_zero(num_requests):
    """A machine that changes its mind for 3,000 rounds: doubt about what is never seen must not grow without end."""
    rng, times = random.Random(num_requests), PassTimes()
    for number in range(3000):
        one = size(num_requests, rng.choice((0, 1, 3)), rng.randrange(20, 600))
        times.add(one, pass_s(one) * rng.choice((1, 1, 1, 8, 0.2)) * (3 if number // 500 % 2 else 1))
        assert 0 < times.at(one) < 100
    timed([size(num_requests, 1, 100)] * 200, times=times)
    one = size(num_requests, 1, 100)
    assert times.at(one) == pytest.approx(pass_s(one), rel=0.1)
