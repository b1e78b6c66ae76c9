"""What a draft takes to read: nothing until it was timed, then in proportion, whatever held one reading up."""

import pytest

from forerun.engine.speculative.load import Load
from forerun.engine.speculative.reading_time import ReadingTime
from forerun.engine.speculative.round_times import RoundTimes


def test_reading_takes_in_proportion_to_the_tokens_and_old_readings_fade():
    reading = ReadingTime()
    assert reading.at(1000) == 0
    for _ in range(20):
        reading.add(100, 0.01)
    assert reading.at(300) == pytest.approx(0.03)
    for _ in range(40):
        reading.add(200, 0.04)
    assert reading.at(300) == pytest.approx(0.06, rel=0.05)


def test_one_reading_that_was_held_up_changes_little():
    reading = ReadingTime()
    for _ in range(20):
        reading.add(100, 0.01)
    reading.add(100, 1.0)
    assert reading.at(100) == pytest.approx(0.01, rel=0.15)


def test_a_first_reading_that_was_something_else_is_forgotten():
    reading = ReadingTime()
    reading.add(100, 3.0)
    reading.add(100, 0.01)
    assert reading.at(100) == pytest.approx(0.01)


def test_reading_is_told_from_drafting():
    """Four texts of 100 tokens are read in 8 ms; the drafts of the same round take 5."""
    times, load = RoundTimes(), Load(num_requests=4, num_context=400)
    for _ in range(10):
        times.add_pass(load, 2, 0.02)
        times.add_other(load, 2, 0.005)
    times.add_reading(load, 2, 0.013, num_texts=4)
    assert times.reading_s(load, 4) == pytest.approx(0.008)
    assert times.reading_s(load, 0.5) == pytest.approx(0.001)
    assert times.at(load, 2) == pytest.approx(0.025, rel=0.02)


def test_a_request_by_itself_says_nothing_of_reading():
    times, load = RoundTimes(), Load(num_requests=1, num_context=100)
    times.add_reading(load, 2, 0.5, num_texts=1)
    assert times.reading_s(load, 1) == 0
