"""Surprise: the stream and the batch agree, thresholds hold their rate, the map of landmarks goes around walls."""

import itertools

import pytest
import torch
from simulated.worlds import TINY_COLLECT, tiny_dataset, tiny_train

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.worldmodels.collection import record_episodes
from forerun.worldmodels.jepa.landmarks import LandmarkMap, farthest_points
from forerun.worldmodels.jepa.surprise import (
    SurpriseDetector,
    alarm_rate,
    calibration_spread,
    conformal_threshold,
    episode_surprises,
)
from forerun.worldmodels.jepa.train import fresh_model


@pytest.fixture(scope="module")
def model():
    model = fresh_model(tiny_dataset().episodes, tiny_train()).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_stream_says_what_the_batch_says(model):
    episodes = record_episodes(TINY_COLLECT, range(2))
    calibration = torch.cat(episode_surprises(model, episodes))
    detector = SurpriseDetector(model, calibration, false_alarm_rate=0.25)
    for first, length, batch in zip(
        episodes.first_rows, episodes.lengths, episode_surprises(model, episodes), strict=True
    ):
        detector.reset()
        readings = [
            detector.update(
                torch.from_numpy(episodes.pixels[row]),
                torch.from_numpy(episodes.actions[row - 1]) if row > first else None,
            )
            for row in range(first, first + length)
        ]
        assert readings[0].surprise is None
        assert not readings[0].is_alarm
        torch.testing.assert_close(torch.tensor([reading.surprise for reading in readings[1:]]), batch)
        for reading in readings[1:]:
            assert reading.p_value == pytest.approx(
                (1 + int((calibration >= reading.surprise - 1e-9).sum())) / 17, abs=0.07
            )


def test_a_frame_without_its_actions_is_refused(model):
    detector = SurpriseDetector(model, torch.arange(10.0), false_alarm_rate=0.5)
    frame = torch.zeros(16, 16, 3, dtype=torch.uint8)
    detector.update(frame)
    with pytest.raises(ConfigError, match=r"shape None: must be \[10\]"):
        detector.update(frame)
    with pytest.raises(ConfigError, match=r"shape \[4\]"):
        detector.update(frame, torch.zeros(4))


@pytest.mark.parametrize("rate", [0.2, 0.25, 0.4, 0.5])
def test_the_threshold_holds_its_rate_over_all_orders(rate):
    """Of n + 1 exchangeable numbers any may be the last: how many exceed the threshold of the others is exact."""
    values = torch.tensor([0.3, 2.0, 5.0, 1.0, 9.0])
    num_alarms = 0
    for last in range(5):
        others = torch.cat([values[:last], values[last + 1 :]])
        num_alarms += bool(values[last] > conformal_threshold(others, false_alarm_rate=rate))
    assert rate - 1 / 5 < num_alarms / 5 <= rate


@pytest.mark.statistical
def test_an_interval_over_episodes_knows_that_frames_are_alike():
    """Frames of an episode are equal here, so that only episodes count: the interval is that of 400 numbers."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(400, generator=generator)
    episodes = [value.expand(20) for value in values]
    found = alarm_rate(episodes, threshold=0.9)
    share = float((values > 0.9).double().mean())
    assert found.rate == pytest.approx(share)
    half = 1.96 * (share * (1 - share) / 399) ** 0.5
    assert found.high - found.rate == pytest.approx(half, rel=1e-3)
    assert calibration_spread(episodes, threshold=0.9) == pytest.approx(half / 1.96, rel=1e-3)
    wider = alarm_rate(episodes, threshold=0.9, spread=half / 1.96)
    assert wider.high - wider.rate == pytest.approx(half * 2**0.5, rel=1e-3)
    # Episodes of different lengths: the rate is over frames, and one long episode weighs as many.
    uneven = alarm_rate([torch.ones(1), torch.zeros(3), torch.zeros(4)], threshold=0.5)
    assert uneven.rate == pytest.approx(1 / 8)


def test_refusals_of_rates():
    with pytest.raises(ConfigError, match=r"allow 0\.0909 and above"):
        conformal_threshold(torch.arange(10.0), false_alarm_rate=0.05)
    assert conformal_threshold(torch.arange(19.0), false_alarm_rate=0.05) == 18
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match="must lie in"):
            conformal_threshold(torch.arange(10.0), false_alarm_rate=rate)


def horseshoe():
    """Places of a U-shaped corridor in order, and an episode that walks through it once."""
    left = [(0.0, float(y)) for y in range(10, 0, -1)]
    bottom = [(x / 2, 0.0) for x in range(5)]
    right = [(2.0, float(y)) for y in range(1, 11)]
    return torch.tensor([*left, *bottom, *right])


def test_the_way_leads_around_the_wall():
    places = horseshoe()
    next_rows = torch.cat([torch.arange(1, len(places)), torch.tensor([-1])])
    landmarks = LandmarkMap(places, next_rows, num_landmarks=len(places))
    goal = places[-1:]
    ways = landmarks.ways(goal)[0]
    order = torch.cdist(places, landmarks.landmarks).argmin(dim=1)
    along = ways[order]
    assert (along[:-1] > along[1:]).all()
    objective = landmarks.objective(goal)
    across, onward = torch.tensor([0.4, 10.0]), torch.tensor([0.0, 9.0])  # near by air, far on foot
    states = torch.stack([across, onward, places[-1]])[None, :, None]
    history = History.of_present(places[:1], action_dim=1)
    scores = objective.score(history, states, torch.zeros(1, 3, 1, 1))[0]
    assert scores[2] > scores[1] > scores[0] - 1e-6
    assert scores[2] == pytest.approx(0.0, abs=1e-6)


def test_farthest_points_cover():
    points = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    chosen = farthest_points(points, 20)
    reach = torch.cdist(points, chosen).min(dim=1).values.max()
    closest = min(float((first - second).norm()) for first, second in itertools.combinations(chosen, 2))
    assert closest >= float(reach)
    assert len(farthest_points(torch.zeros(5, 2), 3)) == 1
