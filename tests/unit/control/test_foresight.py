"""Predictions of whole horizons beside what came: pieces, ends, errors, evidence of drift."""

import numpy as np
import pytest

from forerun.data.trajectories import Episode
from forerun.recipes.mpc.prediction_plot import foresight


class Sum:
    """Knows that a state grows by the actions, and is off by an error in all of its states."""

    action_dim = 1

    def __init__(self, error):
        self.error = error

    def rollout(self, history, actions, *, generator):
        return history.present[:, None, None] + actions.cumsum(dim=2) + self.error


def episode(num_steps):
    actions = np.arange(1.0, num_steps + 1, dtype=np.float32)[:, None]
    states = np.concatenate([np.zeros((1, 1), np.float32), actions.cumsum(axis=0)])
    return Episode(states=states, actions=actions, rewards=np.zeros(num_steps, np.float32), terminated=False)


def test_a_true_model_sees_every_piece_as_it_comes():
    found = foresight(Sum(0.0), episode(7), horizon=3, every=2)
    assert found.starts == (0, 2, 4, 6)
    assert found.predicted[1, :, 0].tolist() == [6.0, 10.0, 15.0]
    assert found.errors(np.ones(1)).tolist() == [0.0, 0.0, 0.0]


def test_what_lies_beyond_the_end_counts_for_nothing():
    found = foresight(Sum(0.5), episode(4), horizon=3, every=3)
    assert np.isnan(found.seen[:, :, 0]).tolist() == [[False, False, False], [False, True, True]]
    assert found.errors(np.full(1, 0.25)).tolist() == pytest.approx([2.0, 2.0, 2.0])
