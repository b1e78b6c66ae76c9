"""Several models as one: each predicts in its own space, and what they disagree on costs."""

import pytest
import torch
from simulated.worlds import tiny_dataset, tiny_train

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.data.normalizer import Normalizer
from forerun.planning.cem import Cem, CemConfig
from forerun.planning.objective import GoalDistance
from forerun.recipes.world.wishes import goal_wish, worded_wish
from forerun.worldmodels.jepa.checkpoint import save_model
from forerun.worldmodels.jepa.ensemble import EnsembleModel, EnsembleObjective, load_models
from forerun.worldmodels.jepa.train import fresh_model

WIDTHS = [2, 3]


@pytest.fixture(scope="module")
def episodes():
    return tiny_dataset().episodes


@pytest.fixture(scope="module")
def models(episodes):
    found = []
    for seed in range(2):
        model = fresh_model(episodes, tiny_train(seed=seed)).eval()
        for block in model.predictor.blocks:  # fresh gates are closed: actions would not matter
            torch.nn.init.normal_(block.to_modulation[1].weight, std=0.3, generator=keyed_generator(seed))
        found.append(model)
    return found


class Linear:
    """A score that is a number of the last state."""

    def __init__(self, index):
        self.index = index

    def score(self, history, states, actions):
        return states[:, :, -1, self.index] + history.present[:, None, self.index]


def test_a_score_is_the_mean_less_kappa_standard_deviations():
    states = torch.tensor([[[[1.0, 9.0, 9.0, 9.0, 5.0]], [[4.0, 0.0, 0.0, 0.0, 4.0]]]])
    history = History.of_present(torch.tensor([[10.0, 0.0, 0.0, 0.0, 20.0]]), action_dim=1)
    parts = [Linear(0), Linear(2)]  # the second model's third number is the state's fifth
    actions = torch.zeros(1, 2, 1, 1)

    def scores(kappa):
        return EnsembleObjective(parts, WIDTHS, kappa=kappa).score(history, states, actions)[0].tolist()

    # candidate 0: 11 and 25, mean 18, deviation 7; candidate 1: 14 and 24, mean 19, deviation 5
    assert scores(0.0) == pytest.approx([18.0, 19.0])
    assert scores(2.0) == pytest.approx([4.0, 9.0])
    with pytest.raises(ConfigError, match="kappa=-1"):
        EnsembleObjective(parts, WIDTHS, kappa=-1)
    with pytest.raises(ConfigError, match="1 objectives for 2 models"):
        EnsembleObjective(parts[:1], WIDTHS, kappa=1)


def test_each_model_rolls_out_from_its_own_embeddings(episodes, models):
    both = EnsembleModel(models)
    pixels = torch.from_numpy(episodes.pixels[:3])
    actions = torch.randn(3, 4, 2, both.action_dim, generator=keyed_generator(0))
    present = both.encode_all(pixels)
    assert present.shape == (3, 16)
    found = both.rollout(History.of_present(present, action_dim=10), actions, generator=keyed_generator(0))
    for model, states in zip(models, found.split(both.widths, dim=-1), strict=True):
        alone = History.of_present(model.encode_all(pixels), action_dim=10)
        torch.testing.assert_close(states, model.rollout(alone, actions, generator=keyed_generator(0)))


def test_a_planner_sees_the_price(episodes, models):
    """With a high price the plan is one on which the models agree more; every planner takes it for an objective."""
    both = EnsembleModel(models)
    present = both.encode_all(torch.from_numpy(episodes.pixels[:4]))
    goals = both.encode_all(torch.from_numpy(episodes.pixels[5:9]))

    def spread(kappa):
        objective = goal_wish(both, episodes, "latent", kappa=kappa)(goals)
        planner = Cem(
            CemConfig(horizon=2, num_samples=64, num_elites=8, num_iterations=4), dynamics=both, objective=objective
        )
        plan = planner.plan(History.of_present(present, action_dim=10), generator=keyed_generator(1))
        costs = [
            GoalDistance(goal).score(None, states[:, None], None)[:, 0]
            for goal, states in zip(goals.split(both.widths, -1), plan.states.split(both.widths, -1), strict=True)
        ]
        return float(torch.stack(costs).std(dim=0, correction=0).sum())

    assert spread(20.0) < 0.7 * spread(0.0)


def test_words_are_read_by_each_models_own_head(episodes, models):
    both = EnsembleModel(models)
    pixels = torch.from_numpy(episodes.pixels[:6])
    states = both.encode_all(pixels)[None, :, None]
    history = History.of_present(states[:, 0, 0], action_dim=10)
    options = {"head": "linear", "seed": 0}
    wish = worded_wish(both, episodes, "near(x=100) + 3 * goal()", **options)
    goals = torch.zeros(1, 16)
    found = wish(goals).score(history, states, torch.zeros(1, 6, 1, 10))
    alone = []
    for model, width_states in zip(models, states.split(both.widths, -1), strict=True):
        part = worded_wish(model, episodes, "near(x=100) + 3 * goal()", **options)(torch.zeros(1, 8))
        past = History.of_present(width_states[:, 0, 0], action_dim=10)
        alone.append(part.score(past, width_states, torch.zeros(1, 6, 1, 10)))
    torch.testing.assert_close(found, torch.stack(alone).mean(dim=0))


def test_models_must_go_together(models, tmp_path, episodes):
    with pytest.raises(ConfigError, match="1 model"):
        EnsembleModel(models[:1])
    other = fresh_model(episodes, tiny_train(seed=3)).eval()
    other.action_normalizer = Normalizer(torch.zeros(10), torch.full((10,), 5.0))
    with pytest.raises(ConfigError, match="same units"):
        EnsembleModel([models[0], other])
    split = {"held_out_fraction": 0.2, "split_seed": 0}
    for place, changes in enumerate(({}, {}, {"split_seed": 1})):
        record = {"data_digest": "one", "train_config": split | changes}
        save_model(models[place % 2], tmp_path / str(place), record=record)
    both, manifest = load_models([tmp_path / "0", tmp_path / "1"])
    assert isinstance(both, EnsembleModel)
    assert manifest["data_digest"] == "one"
    assert load_models([tmp_path / "0"])[0].action_dim == 10
    with pytest.raises(ConfigError, match="other episodes"):
        load_models([tmp_path / "0", tmp_path / "2"])
