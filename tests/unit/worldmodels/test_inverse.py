"""The inverse model: it finds what was done, and a search that begins with its guesses needs less."""

import pytest
import torch
from simulated.worlds import tiny_dataset, tiny_train

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.planning.cem import Cem, CemConfig
from forerun.planning.objective import GoalDistance
from forerun.recipes.world.planners import PlanConfig
from forerun.worldmodels.jepa.inverse import InverseConfig, InverseModel
from forerun.worldmodels.jepa.train import fresh_model


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Walk:
    """A world whose embedding is the sum of all actions so far."""

    action_dim = 2

    def rollout(self, history, actions, *, generator):
        return history.present[:, None, None] + actions.cumsum(dim=2)


@pytest.fixture(scope="module")
def inverse():
    """Fitted to walks of 20 steps: between two places every way is as likely, so the guess is to go evenly."""
    actions = normal(40, 20, 2)
    latents = torch.cat([torch.zeros(40, 1, 2), actions[:, :-1].cumsum(dim=1)], dim=1)
    last_rows = (torch.arange(40) * 20 + 19).repeat_interleave(20)
    config = InverseConfig(horizon=2, width=64, num_steps=400)
    return InverseModel.fit(latents.flatten(0, 1), actions.flatten(0, 1), last_rows, config)


def test_the_guess_leads_there(inverse):
    present, goals = normal(50, 2), normal(50, 2, seed=1)
    reached = present + inverse.guess(present, goals).sum(dim=1)
    gap, before = ((place - goals).norm(dim=1).mean() for place in (reached, present))
    assert float(gap) < 0.6 * float(before)


def test_proposals_are_the_guess_and_its_neighbours(inverse):
    present, goals = normal(3, 2), normal(3, 2, seed=1)
    history = History.of_present(present, action_dim=2)
    proposal = inverse.towards(goals)
    drawn = proposal.propose(history, 4000, generator=torch.Generator().manual_seed(0))
    guess = inverse.guess(present, goals)
    assert torch.equal(drawn[:, 0], guess)
    torch.testing.assert_close(drawn.mean(dim=1), guess, atol=0.1, rtol=0)  # 6 standard errors and more
    torch.testing.assert_close(drawn.std(dim=1), inverse.residual_std.expand(3, -1, -1), rtol=0.1, atol=0)


def test_one_iteration_with_guesses_is_better_than_without(inverse):
    goals = 2 * normal(60, 2, seed=1)
    history = History.of_present(torch.zeros(60, 2), action_dim=2)

    def cost(num_proposals):
        config = CemConfig(horizon=2, num_samples=12, num_elites=3, num_iterations=1, num_proposals=num_proposals)
        proposal = inverse.towards(goals) if num_proposals else None
        planner = Cem(config, dynamics=Walk(), objective=-GoalDistance(goals), proposal=proposal)
        return -float(planner.plan(history, generator=torch.Generator().manual_seed(0)).scores.mean())

    assert cost(6) < 0.7 * cost(0)


def test_a_model_of_episodes_has_their_sizes():
    episodes = tiny_dataset().episodes
    model = fresh_model(episodes, tiny_train()).eval()
    inverse = InverseModel.of_episodes(model, episodes, InverseConfig(horizon=3, width=8, num_steps=2))
    guess = inverse.guess(normal(4, 8), normal(4, 8, seed=1))
    assert guess.shape == (4, 3, model.action_dim)
    assert inverse.residual_std.isfinite().all()
    with pytest.raises(ConfigError, match="num_proposals=4"):
        PlanConfig(goal="landmarks", num_proposals=4)
