"""Drift beside a controller and over a recording: silent in the world it knows, loud where an actuator is damaged."""

import pytest
import torch

from forerun.core.generator import keyed_generator
from forerun.envs.control_dynamics import TrueDynamics
from forerun.envs.control_env import ActuatorFault, FaultyActuator
from forerun.envs.control_tasks import control_task
from forerun.planning.drift_watch import DriftWatch, PredictionError, first_alarm
from forerun.planning.episodes import run_episodes

TASK = control_task("double-integrator")


class Noisy(TrueDynamics):
    """The true equations, with noise of a hundredth."""

    def rollout(self, history, actions, *, generator):
        exact = super().rollout(history, actions, generator=generator)
        return exact + 0.01 * torch.randn(exact.shape, generator=generator)


@pytest.fixture(scope="module")
def error():
    return PredictionError(Noisy(TASK.transition, bounds=TASK.bounds), unit=torch.tensor([0.1, 0.1]))


def environments(count, fault):
    env = TASK.make_env(count)
    return env if fault is None else FaultyActuator(env, fault, reward=TASK.reward)


def recorded(seed, *, fault=None, count=8):
    policy, seeds = TASK.behaviour(count, keyed_generator(seed)), range(seed, seed + count)
    return run_episodes(environments(count, fault), policy, task=TASK, seeds=seeds, source="test")


def watched(error, *, fault):
    """Alarms of four environments that are driven and watched step by step."""
    watch, env = DriftWatch(error, recorded(0), num_envs=4), environments(4, fault)
    policy, states = TASK.behaviour(4, keyed_generator(9)), env.reset(range(90, 94))
    for step in range(TASK.num_steps):
        watch.observe(states)
        actions = policy(states, step)
        watch.expect(states, actions)
        states = env.step(actions).states
    return watch.alarms


def test_the_error_is_in_units_of_a_typical_change(error):
    states, actions = torch.zeros(2000, 2), torch.zeros(2000, 1)
    seen = TASK.transition(states, actions)
    errors = error.errors(error.predicted(states, actions, key=0), seen)
    # Noise of 0.01 in units of 0.1, over two numbers: 5 standard errors of the mean square are 0.0011.
    assert float(errors.square().mean()) == pytest.approx(0.01, abs=0.0012)


def test_a_watch_is_silent_in_a_healthy_world(error):
    """Four environments at a false-alarm probability of 0.01 each: two alarms have a chance below 6e-4."""
    assert sum(alarm is not None for alarm in watched(error, fault=None)) < 2


def test_a_watch_hears_a_biased_actuator_in_every_environment(error):
    alarms = watched(error, fault=ActuatorFault(indices=(0,), bias=0.5))
    assert all(alarm is not None and alarm <= 40 for alarm in alarms)


def test_recordings_are_told_apart(error):
    """A false alarm has a chance of at most 0.01 for a free seed."""
    assert first_alarm(error, recorded(0), recorded(50)) is None
    alarm = first_alarm(error, recorded(0), recorded(50, fault=ActuatorFault(indices=(0,), gain=-1.0)))
    assert alarm is not None
    assert alarm < 100


def test_what_is_watched_is_what_was_calibrated():
    exact = PredictionError(TrueDynamics(TASK.transition, bounds=TASK.bounds), unit=torch.ones(2))
    episode = recorded(0, fault=ActuatorFault(indices=(0,), bias=0.5), count=1).episodes[0]
    states, actions = torch.from_numpy(episode.states), torch.from_numpy(episode.actions)
    step = exact.errors(exact.predicted(states[3:4], actions[3:4], key=7), states[4:5])
    assert float(step[0]) == pytest.approx(float(exact.of_episode(episode)[3]), rel=1e-4)
