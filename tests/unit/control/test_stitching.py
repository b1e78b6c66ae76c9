"""A state value that puts episodes together, goals in hindsight, and waves of a state."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from forerun.core.control import ActionBounds, History
from forerun.core.errors import ConfigError
from forerun.core.generator import keyed_generator
from forerun.data.normalizer import Normalizer
from forerun.data.trajectories import Episode, Trajectories
from forerun.data.windows import discounted_returns
from forerun.envs.control_goals import Arrival
from forerun.models.denoiser import DenoiserConfig
from forerun.worldmodels.diffusion.bundle import ModelBundle
from forerun.worldmodels.diffusion.config import dmpc_config
from forerun.worldmodels.diffusion.stitching import StateValueConfig, Stitching, follow
from forerun.worldmodels.diffusion.train import DmpcTrainingConfig, ModelTrainer
from forerun.worldmodels.diffusion.value import StateValue
from forerun.worldmodels.diffusion.waves import WaveConfig, with_waves

ARRIVAL = Arrival(moving=(0,), goal=(1,), radius=0.1)


def walk(first, last, *, goal, terminated=False):
    """Return an episode along a line in steps of one, paid 1 for each step that ends at the goal."""
    places = np.arange(first, last + np.sign(last - first), np.sign(last - first), dtype=np.float32)
    states = np.stack([places, np.full_like(places, goal)], axis=1)
    return Episode(
        states=states,
        actions=np.zeros((len(places) - 1, 1), dtype=np.float32),
        rewards=(places[1:] == goal).astype(np.float32),
        terminated=terminated,
    )


def recorded(*episodes):
    return Trajectories(episodes=episodes, state_names=("place", "goal"), action_names=("a",), source="test")


class Constant(StateValue):
    """Says one number of every state."""

    def __init__(self, number):
        super().__init__(DenoiserConfig(width=8, depth=1), *[Normalizer(torch.zeros(2), torch.ones(2))] * 2)
        self.number = number

    def forward(self, states):
        return torch.full(states.shape[:-1], self.number)


def test_a_stretch_pays_its_rewards_and_what_comes_after_it():
    # The second episode ends for good, the first was only cut off.
    data = recorded(walk(0, 3, goal=2), walk(0, 2, goal=2, terminated=True))
    config = StateValueConfig(targets="stitched", lookahead=2)
    stitching = Stitching(data, config, discount=0.5)
    stretch = stitching.draw(torch.arange(5), keyed_generator(0))
    assert stretch.states[:, 0].tolist() == [0, 1, 2, 0, 1]
    assert stretch.ends[:, 0].tolist() == [2, 3, 3, 2, 2]
    assert stretch.paid.tolist() == [0.5, 1.0, 0.0, 0.5, 1.0]
    assert stretch.end_weights.tolist() == [0.25, 0.25, 0.5, 0.0, 0.0]
    assert stitching.worth(stretch, Constant(1.5)).tolist() == [0.875, 1.375, 0.75, 0.5, 1.0]
    # Rewards of at most 1 are never worth more than 2 for ever, and never less than nothing.
    assert stitching.worth(stretch, Constant(9.0)).tolist() == [1.0, 1.5, 1.0, 0.5, 1.0]
    assert stitching.worth(stretch, Constant(-9.0)).tolist() == stretch.paid.tolist()


def test_goals_in_hindsight_are_places_that_were_reached_and_pay_there():
    data = recorded(walk(0, 9, goal=20), walk(30, 39, goal=20))
    rows = torch.arange(18).repeat(15)
    for future, elsewhere in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        config = StateValueConfig(targets="stitched", lookahead=1, future_share=future, elsewhere_share=elsewhere)
        stretch = Stitching(data, config, discount=0.5, arrival=ARRIVAL).draw(rows, keyed_generator(0))
        place, goal = stretch.states.T
        assert torch.equal(goal, stretch.ends[:, 1])
        assert stretch.paid.tolist() == (stretch.ends[:, 0] == goal).float().tolist()
        if future:
            assert bool((goal > place).all())
            assert bool((goal // 30 == place // 30).all()), "of the same episode"
            assert set(goal[place == 0].tolist()) == set(range(1, 10))
        elif elsewhere:
            assert set(goal.tolist()) == {*range(10), *range(30, 40)}
        else:
            assert goal.unique().tolist() == [20]


def trainer(data):
    state_value = StateValueConfig(
        targets="stitched", expectile=0.9, lookahead=2, follow_rate=0.1, waves=WaveConfig(indices=(0,), num_octaves=2)
    )
    config = dmpc_config(
        "smoke", history=1, horizon=4, discount=0.8, waves=WaveConfig(indices=(0,)), state_value=state_value
    )
    config = replace(config, value=DenoiserConfig(width=32, depth=1), wide_share=0.5)
    training = DmpcTrainingConfig(num_steps=300, batch_size=16, learning_rate=5e-3)
    return ModelTrainer(data, ActionBounds.symmetric(1), config=config, training=training, arrival=ARRIVAL)


def test_a_stitched_value_knows_ways_that_no_episode_went():
    """One episode goes from 0 to 5, the other one from 5 to 9, where the goal is and it stays."""
    second = walk(5, 9, goal=9)
    rest = 8
    second = Episode(
        states=np.concatenate([second.states, second.states[-1:].repeat(rest, axis=0)]),
        actions=np.zeros((len(second.actions) + rest, 1), dtype=np.float32),
        rewards=np.append(second.rewards, np.ones(rest, dtype=np.float32)),
        terminated=False,
    )
    data = recorded(walk(0, 5, goal=9), second)
    states = torch.tensor([[place, 9.0] for place in (0.0, 2.0, 4.0)])
    assert float(discounted_returns(data, discount=0.8)[:5].max()) == 0.0, "that episode never came to the goal"
    stitched = trainer(data).state_value()(states)
    ideal = torch.tensor([0.8 ** (9 - place - 1) / (1 - 0.8) for place in (0, 2, 4)])
    assert torch.allclose(stitched, ideal, rtol=0.25), (stitched, ideal)


def test_a_slow_copy_follows():
    slow, value = (
        StateValue(DenoiserConfig(width=8, depth=1), *[Normalizer(torch.zeros(2), torch.ones(2))] * 2) for _ in "ab"
    )
    before = [weights.clone() for weights in slow.parameters()]
    follow(slow, value, rate=0.25)
    for was, now, ahead in zip(before, slow.parameters(), value.parameters(), strict=True):
        assert torch.allclose(now, 0.75 * was + 0.25 * ahead)


def test_models_with_waves_and_a_stitched_value_are_saved_whole(tmp_path):
    made = trainer(recorded(walk(0, 9, goal=5), walk(9, 0, goal=5)))
    made._training = replace(made._training, num_steps=2)
    bundle = ModelBundle.trained(made, task="test", bounds=ActionBounds.symmetric(1))
    bundle.save(tmp_path / "models", record={})
    again = ModelBundle.load(tmp_path / "models")
    assert again.config == bundle.config
    history = History.of_present(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), action_dim=1)
    for one, other in zip(
        (bundle.proposal.propose(history, 6, generator=keyed_generator(0)), bundle.state_value(history.present)),
        (again.proposal.propose(history, 6, generator=keyed_generator(0)), again.state_value(history.present)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_waves_stand_behind_the_state_and_double():
    states = torch.tensor([[0.5, -1.0, 0.25]])
    config = WaveConfig(indices=(0, 2), num_octaves=2)
    seen = with_waves(states, config)[0].tolist()
    angles = [0.25 * math.pi, 0.5 * math.pi, 0.125 * math.pi, 0.25 * math.pi]
    assert seen == pytest.approx([0.5, -1.0, 0.25, *map(math.sin, angles), *map(math.cos, angles)], abs=1e-6)
    assert config.num_features == 8
    assert with_waves(states, WaveConfig()) is states


@pytest.mark.parametrize(
    "wrong",
    [
        {"expectile": 1.0},
        {"lookahead": 0},
        {"num_goals": 0},
        {"follow_rate": 0.0},
        {"future_share": -0.1},
        {"future_share": 0.6, "elsewhere_share": 0.6},
    ],
)
def test_options_that_can_not_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="|".join(wrong)):
        StateValueConfig(**wrong)


def test_waves_that_can_not_be_are_refused():
    with pytest.raises(ConfigError, match="num_octaves=0"):
        WaveConfig(num_octaves=0)
    with pytest.raises(ConfigError, match=r"indices=\[-1\]"):
        WaveConfig(indices=(-1,))
