"""Plans for what is wanted in words, by every planner; what is known is read off embeddings by a head."""

import numpy as np
import pytest
import torch
from simulated.worlds import tiny_dataset, tiny_train

from forerun.core.control import History
from forerun.core.errors import ConfigError, TrajectoryError
from forerun.recipes.world.agents import PlanningAgent
from forerun.recipes.world.goal_tasks import held_out_tasks
from forerun.recipes.world.heads import embedded, fit_head
from forerun.recipes.world.planners import PLANNERS, PlanConfig
from forerun.recipes.world.play import Played, play
from forerun.recipes.world.pursuit import Pursued
from forerun.recipes.world.wishes import goal_wish, worded_wish
from forerun.worldmodels.jepa.train import fresh_model


class Shown:
    """A model whose embeddings are the states themselves (in units of 100), and whose actions move them."""

    action_dim = 2
    states = torch.from_numpy(tiny_dataset().episodes.states) / 100

    def encode_all(self, pixels):
        return self.states[: len(pixels)]

    def rollout(self, history, actions, *, generator):
        return history.present[:, None, None] + actions.cumsum(dim=2)


@pytest.fixture(scope="module")
def episodes():
    return tiny_dataset().episodes


def score(text, episodes, ends, **options):
    wish = worded_wish(Shown(), episodes, text, head="linear", **options)
    states = torch.tensor(ends)[None, :, None] / 100
    history = History.of_present(torch.zeros(1, 2), action_dim=2)
    return wish(torch.tensor([[1.0, 1.0]])).score(history, states, torch.zeros(1, len(ends), 1, 2))[0].tolist()


def test_words_are_about_known_quantities_in_their_units(episodes):
    ends = [[50.0, 20.0], [50.0, 200.0], [150.0, 20.0]]
    assert score("near(x=50)", episodes, ends) == pytest.approx([0, 0, -100], abs=0.5)
    assert score("near(x=50, y=20)", episodes, ends) == pytest.approx([0, -180, -100], abs=0.5)
    assert score("any_of(near(x=50), near(x=150))", episodes, ends) == pytest.approx([0, 0, 0], abs=0.5)
    # goal() is the embedding's own squared distance: (0.5, -0.8) off, (0.5, 1) off, (0.5, -0.8) off
    assert score("2 * goal()", episodes, ends) == pytest.approx([-1.78, -2.5, -1.78], abs=0.02)
    limited = score("near(x=50)", episodes, ends, constraints=["keep_out(y=(100, 224))"])
    assert limited[1] < -1e8
    assert limited[0] == pytest.approx(0, abs=0.5)


def test_a_goal_may_be_what_a_head_reads_off_it(episodes):
    ends = torch.tensor([[[100.0, 100.0], [50.0, 20.0]], [[90.0, 130.0], [100.0, 100.0]]])  # two plans of two steps
    history = History.of_present(torch.zeros(1, 2), action_dim=2)
    spread = torch.from_numpy(episodes.states).std(dim=0, correction=0)

    def score(cost_at):
        wish = goal_wish(Shown(), episodes, "state", head="linear", cost_at=cost_at)
        return wish(torch.tensor([[1.0, 1.0]])).score(history, ends[None] / 100, torch.zeros(1, 2, 2, 2))[0]

    costs = ((ends - 100) / spread).square().sum(dim=-1)
    torch.testing.assert_close(score("last"), -costs[:, -1], rtol=0.02, atol=0.01)
    torch.testing.assert_close(score("every"), -costs.sum(dim=1), rtol=0.02, atol=0.01)
    with pytest.raises(ConfigError, match="costs of a last state"):
        PlanConfig(goal="landmarks", cost_at="every")


def test_words_that_can_not_be_read_are_refused_before_anything_is_learned(episodes):
    for text, message in (
        ("near(z=1)", "number of the state"),
        ("nar(x=1)", "word of an objective"),
        ("3", "a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            worded_wish(None, episodes, text)
    with pytest.raises(ConfigError, match="keep_out"):
        worded_wish(None, episodes, "near(x=1)", constraints=["near(x=1)"])


def test_nothing_can_be_read_where_nothing_is_known(episodes):
    unknown = tiny_dataset().episodes
    object.__setattr__(unknown, "state_names", ())
    with pytest.raises(TrajectoryError, match="--state-keys"):
        fit_head(Shown(), unknown)


def test_heads_read_what_is_known_and_give_a_slope(episodes):
    latents, states = embedded(Shown(), episodes)
    network = fit_head(Shown(), episodes, seed=1)
    assert float((network(latents) - states).abs().mean()) < 5.0
    for head in (network, fit_head(Shown(), episodes, kind="linear")):
        leaf = latents[:4].clone().requires_grad_()
        assert torch.autograd.grad(head(leaf).sum(), leaf)[0].abs().max() > 0


@pytest.mark.parametrize("planner", PLANNERS)
def test_every_planner_acts_by_a_model_from_pixels(planner, episodes):
    model = fresh_model(episodes, tiny_train()).eval()
    tasks = held_out_tasks(episodes, "near", num_tasks=2, frame_skip=5, seed=0)
    config = PlanConfig(
        planner=planner, horizon=2, execute_horizon=2, num_samples=6, num_elites=3, num_iterations=2, returns="best",
        is_bounded=True, has_autocast=planner == "icem",
    )  # fmt: skip
    agent = PlanningAgent(model, tasks, config)
    played = play(tasks, agent, stops_at_goal=False)
    assert len(played.frames) == 1 + tasks.budget_steps // 5
    assert {made.plan.actions.shape for made in agent.plans} == {(2, 2, 10)}
    for made in agent.plans:
        assert bool((made.plan.future_scores.amax(dim=1) <= made.plan.scores + 1e-6).all())


def test_options_that_do_not_go_together():
    with pytest.raises(ConfigError, match="'gradient' takes none"):
        PlanConfig(planner="gradient", num_proposals=2)
    with pytest.raises(ConfigError, match="kappa=-1"):
        PlanConfig(kappa=-1)


def test_what_came_of_it_is_told_from_the_true_states():
    positions = np.array([[[0.0, 0.0], [9.0, 0.0]], [[4.0, 1.0], [6.0, 3.0]], [[5.0, 2.0], [1.0, 4.0]]])
    played = Played(
        is_success=np.zeros(2, bool), frames=np.zeros((3, 2, 8, 8, 3), np.uint8), positions=positions, cpu_s=0
    )
    found = Pursued.of("model", played, ("x", "y"), ["keep_out(x=(3, 5.5))"])
    assert found.final == {"x": 3.0, "y": 3.0}
    assert found.broken_share == {"keep_out(x=(3, 5.5))": 0.5}  # 4 and 5 of the four frames after the first
    assert "ended at x 3.0, y 3.0" in found.line()
    assert found.to_json()["final"]["x"] == 3.0
