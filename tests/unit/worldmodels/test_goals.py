"""Goals that leave a choice: any of several, or some quantities."""

import pytest
import torch

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.worldmodels.jepa.goals import AnyGoal, ProbeGoal
from forerun.worldmodels.jepa.probes import LinearProbe

HISTORY = History.of_present(torch.zeros(1, 2), action_dim=1)


def scores(objective, *ends):
    states = torch.tensor(ends)[None, :, None]
    return objective.score(HISTORY, states, torch.zeros(1, len(ends), 1, 1))[0].tolist()


def test_the_nearest_goal_counts():
    goals = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    assert scores(AnyGoal(goals), (1.0, 0.0), (9.0, 0.0), (5.0, 0.0), (10.0, 2.0)) == [-1.0, -1.0, -25.0, -4.0]
    assert scores(AnyGoal(goals[None, 1:]), (1.0, 0.0)) == [-81.0]
    with pytest.raises(ConfigError, match="any of no goals"):
        AnyGoal(goals[:0])


def test_what_is_not_named_may_be_anything():
    latents = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    quantities = latents @ torch.tensor([[30.0, 0.0], [0.0, 5.0]]) + 100
    probe = LinearProbe.fit(latents, quantities, ridge=1e-9)
    wanted = ProbeGoal(probe, ("x", "y"), {"x": 130.0})
    at, elsewhere, off = scores(wanted, (1.0, 0.0), (1.0, 7.0), (0.0, 0.0))
    assert at == pytest.approx(0, abs=1e-4)
    assert elsewhere == pytest.approx(0, abs=1e-4)
    assert off == pytest.approx(-((30 / float(quantities[:, 0].std(correction=0))) ** 2), rel=1e-3)
    with pytest.raises(ConfigError, match=r"\['z'\]: must name one or more of \['x', 'y'\]"):
        ProbeGoal(probe, ("x", "y"), {"z": 1.0})
