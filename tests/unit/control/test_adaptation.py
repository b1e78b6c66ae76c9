"""An alarm in the control loop asks for a planner that fits: what it is told, and that it takes over."""

import pytest
import torch

from forerun.core.control import ActionBounds, History
from forerun.core.errors import ConfigError
from forerun.planning.adaptation import AdaptationConfig, AdaptiveController
from forerun.planning.cem import Cem, CemConfig
from forerun.planning.controller import Controller, ControllerConfig
from forerun.planning.objective import GoalDistance
from forerun.worldmodels.jepa.surprise import SurpriseWatch

BOUNDS = ActionBounds.symmetric(1)


class Moves:
    """Predicts that a state moves by the action times a sign; a latent model whose frames are its states."""

    action_dim = 1

    def __init__(self, sign=1.0, history=2):
        self.sign, self.history = sign, history

    @property
    def predictor(self):
        return self

    def rollout(self, history, actions, *, generator):
        return history.present[:, None, None] + self.sign * actions.cumsum(dim=2)


def planner(sign):
    config = CemConfig(horizon=2, num_samples=64, num_elites=8, num_iterations=6)
    objective = -GoalDistance(torch.tensor([3.0]), when="every")
    return Cem(config, dynamics=Moves(sign), objective=objective, bounds=BOUNDS)


def act(num_steps, *, signs, num_alarms=1, record=4, envs=2):
    """States of a world whose actions count ``signs[step]``, controlled by a planner that believes in 1."""
    told = []

    def adapt(seen):
        told.append(seen)
        moves = seen.states[:, 1:] - seen.states[:, :-1]
        return planner(float(torch.sign((moves * seen.actions).sum())))

    controller = Controller(ControllerConfig(), planner=planner(1.0), bounds=BOUNDS)
    watch = SurpriseWatch(Moves(), threshold=1e-6, num_envs=envs)
    config = AdaptationConfig(num_alarms=num_alarms, num_steps=record)
    adaptive = AdaptiveController(config, controller=controller, watch=watch, adapt=adapt)
    states = [torch.zeros(envs, 1)]
    actions = []
    for step in range(num_steps):
        actions.append(adaptive.act(states[-1], step))
        states.append(states[-1] + signs(step) * actions[-1])
    return adaptive, torch.stack(states, dim=1), torch.stack(actions, dim=1), told


def test_a_healthy_world_asks_for_nothing():
    adaptive, states, _, told = act(12, signs=lambda step: 1.0)
    assert adaptive.adapted_at is None
    assert told == []
    assert states[:, -1].tolist() == [pytest.approx([3.0], abs=0.1)] * 2


def test_after_an_alarm_a_new_planner_takes_over():
    adaptive, states, actions, [seen] = act(30, signs=lambda step: 1.0 if step < 2 else -1.0)
    assert adaptive.watch.alarms == [3, 3]  # the third step's outcome is the first surprise
    assert adaptive.adapted_at == 3 + 4
    torch.testing.assert_close(seen.states, states[:, 3:8])
    torch.testing.assert_close(seen.actions, actions[:, 3:7])
    assert float(states[:, 7].max()) < 0.5  # driven away by a wrong belief
    assert states[:, -1].tolist() == [pytest.approx([3.0], abs=0.1)] * 2


def test_as_many_environments_must_be_surprised_as_asked_for():
    one = torch.tensor([[-1.0], [1.0]])
    assert act(12, signs=lambda step: one, num_alarms=1)[0].adapted_at == 5
    assert act(12, signs=lambda step: one, num_alarms=2)[0].adapted_at is None


def test_a_watch_compares_with_what_was_predicted_from_as_much_as_the_model_sees():
    seen = []

    class Recorded(Moves):
        def rollout(self, history, actions, *, generator):
            seen.append(history)
            return super().rollout(history, actions, generator=generator)

    watch = SurpriseWatch(Recorded(history=3), threshold=0.5, num_envs=1)
    for step in range(6):
        watch.observe(torch.tensor([[float(step)]]))
        watch.expect(torch.tensor([[float(step)]]), torch.tensor([[1.0 if step < 4 else 7.0]]))
    watch.observe(torch.tensor([[6.0]]))
    assert watch.alarms == [5]
    assert [history.states.shape[1] for history in seen] == [1, 2, 3, 3, 3, 3]
    assert seen[4].states[0, :, 0].tolist() == [2.0, 3.0, 4.0]
    assert seen[5].actions[0, :, 0].tolist() == [1.0, 7.0]
    assert isinstance(seen[0], History)


def test_refusals():
    with pytest.raises(ConfigError, match="num_steps=0"):
        AdaptationConfig(num_steps=0)
