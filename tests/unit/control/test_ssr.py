"""Sample, score, rank: rounds that the clock may end, and several futures for a plan."""

import pytest
import torch

from forerun.core.control import ActionBounds, History
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.planning.objective import Constraint, FinalReward
from forerun.planning.random_shooting import UniformProposal
from forerun.planning.ssr import Ssr, SsrConfig

BOUNDS = ActionBounds.symmetric(1)
HISTORY = History.of_present(torch.zeros(2, 1), action_dim=1)


class Gamble:
    """A positive first action gains 1.2 in the mean and is a gamble, a negative one gains 1 for certain."""

    action_dim = 1

    def rollout(self, history, actions, *, generator):
        first = actions[:, :, 0]
        luck = torch.randn(first.shape, generator=generator)
        gain = torch.where(first > 0, 1.2 + 3.0 * luck, torch.ones_like(first))
        return gain[:, :, None].expand(-1, -1, actions.shape[2], -1)


def plan(is_late=lambda: False, objective=None, **options):
    planner = Ssr(
        SsrConfig(**options),
        proposal=UniformProposal(BOUNDS, horizon=2),
        dynamics=Gamble(),
        objective=objective or FinalReward(lambda states: states[..., 0]),
        bounds=BOUNDS,
    )
    return planner.plan(HISTORY, generator=keyed_generator(0), is_late=is_late)


def test_one_future_falls_for_luck_and_aversion_to_risk_does_not():
    lucky = plan(num_samples=32)
    assert bool((lucky.actions[:, 0] > 0).all())
    assert bool((lucky.scores > 3).all())
    careful = plan(num_samples=32, num_futures=64, risk_aversion=1.0)
    assert bool((careful.actions[:, 0] < 0).all())
    assert careful.scores.tolist() == pytest.approx([1.0, 1.0])
    # Without aversion the mean decides: 64 futures of standard deviation 3 put every gamble within 5 errors of 1.2.
    neutral = plan(num_samples=32, num_futures=64)
    assert bool((neutral.scores < 1.2 + 5 * 3 / 8).all())


def test_several_futures_keep_the_shapes_of_one():
    one, several = plan(num_samples=6), plan(num_samples=6, num_futures=3)
    for name in ("actions", "states", "futures", "future_actions", "future_scores"):
        assert getattr(one, name).shape == getattr(several, name).shape, name


def test_one_future_that_breaks_a_constraint_decides():
    limit = Constraint(lambda states, actions: -4.0 - states[..., 0], name="no great loss")
    wanted = FinalReward(lambda states: 100 * (states[..., 0] != 1.0).float()).subject_to(limit)
    found = plan(num_samples=16, num_futures=400, objective=wanted)
    assert bool((found.actions[:, 0] < 0).all()), "a gamble passes 400 futures once in 10 million"


def test_rounds_are_parts_of_the_samples_and_the_clock_ends_them():
    asked = []
    whole = plan(num_samples=10, num_rounds=3)
    assert (whole.num_iterations, whole.num_candidates) == (3, 10)
    cut = plan(num_samples=10, num_rounds=3, is_late=lambda: asked.append(1) is None)
    assert (cut.num_iterations, cut.num_candidates) == (1, 3)
    assert torch.equal(cut.future_actions, whole.future_actions[:, :3])


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"num_rounds": 65}, {"num_futures": 0}, {"risk_aversion": -1.0}])
def test_wrong_options(wrong):
    with pytest.raises(ConfigError):
        SsrConfig(**wrong)
