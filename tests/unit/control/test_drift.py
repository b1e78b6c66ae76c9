"""The drift detector: it stays silent as often as it promises, and does not stay silent when errors grow."""

import numpy as np
import pytest

from forerun.core.errors import ConfigError
from forerun.planning.drift import DriftDetector


def healthy(source, count=30, steps=100):
    return [source.gamma(2.0, size=steps) for _ in range(count)]


def alarms(scale, *, false_alarm, num_runs, seed=0):
    """Return the share of runs of 300 steps that raise the alarm when errors are scaled."""
    source = np.random.default_rng(seed)
    raised = 0
    for _ in range(num_runs):
        detector = DriftDetector(healthy(source), false_alarm=false_alarm)
        raised += any(detector.update(float(error)) for error in scale * source.gamma(2.0, size=300))
    return raised / num_runs


def test_false_alarms_are_no_more_frequent_than_asked():
    """120 runs at a rate of at most 0.1: more than 26 alarms have a chance below 1e-4 (binomial tail)."""
    assert alarms(1.0, false_alarm=0.1, num_runs=120) <= 26 / 120


def test_grown_errors_raise_the_alarm():
    assert alarms(3.0, false_alarm=0.01, num_runs=20) == 1.0


def test_the_alarm_stays_and_is_reset():
    detector = DriftDetector(healthy(np.random.default_rng(0)), block=2, false_alarm=0.05)
    steps = [detector.update(50.0) for _ in range(40)]
    first = steps.index(True)
    assert all(steps[first:])
    assert detector.num_steps == first + 1
    assert detector.update(0.0)
    detector.reset()
    assert not detector.has_drifted
    assert detector.log_evidence == pytest.approx(0.0, abs=1e-12)


def test_smaller_errors_raise_no_alarm():
    assert alarms(0.3, false_alarm=0.1, num_runs=20) == 0.0


def test_too_little_calibration_is_refused():
    with pytest.raises(ConfigError, match="4 blocks of 5 steps to calibrate on: must be at least 20"):
        DriftDetector([np.ones(20)])
    with pytest.raises(ConfigError, match="false_alarm=1"):
        DriftDetector([np.ones(200)], false_alarm=1.0)
