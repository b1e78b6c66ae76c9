"""The training loop: it optimises, and a run that was cut off goes on as if it had not been."""

import pytest
import torch
from torch import nn

from forerun.core.errors import CheckpointError
from forerun.training.loop import LoopConfig, TrainingLoop
from forerun.training.schedule import warmup_cosine


class _KilledError(Exception):
    pass


def make_loop(directory, *, num_steps=12, stop_at=None, checkpoint_every=4):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    model.register_parameter("frozen", frozen)

    def batch_at(step):
        if step == stop_at:
            raise _KilledError
        return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))

    def loss(batch):
        return (model(batch).squeeze(-1) - batch.sum(dim=1)).square().mean()

    config = LoopConfig(num_steps=num_steps, learning_rate=0.1, num_warmup=2, checkpoint_every=checkpoint_every)
    return model, TrainingLoop(model, config, batch_at=batch_at, loss=loss, directory=directory)


def test_the_loss_falls():
    losses = make_loop(None, num_steps=60)[1].run()
    assert len(losses) == 60
    assert losses[-1] < 0.1 * losses[0]


def test_a_killed_run_resumes_to_the_same_curve_and_weights(tmp_path):
    model, loop = make_loop(tmp_path / "whole")
    whole = loop.run()
    with pytest.raises(_KilledError):
        make_loop(tmp_path / "cut", stop_at=10)[1].run()
    resumed_model, resumed = make_loop(tmp_path / "cut")
    assert resumed.run() == whole
    assert torch.equal(resumed_model.weight, model.weight)


def test_a_finished_run_is_not_trained_again(tmp_path):
    losses = make_loop(tmp_path)[1].run()
    assert make_loop(tmp_path, stop_at=0)[1].run() == losses


def test_other_settings_do_not_resume(tmp_path):
    make_loop(tmp_path)[1].run()
    with pytest.raises(CheckpointError, match="num_steps"):
        make_loop(tmp_path, num_steps=13)[1].run()


def test_frozen_parameters_stay(tmp_path):
    model, loop = make_loop(tmp_path)
    loop.run()
    assert torch.equal(model.get_parameter("frozen"), torch.ones(2))


def test_schedule_rises_then_falls_to_its_final_fraction():
    values = [warmup_cosine(step, num_steps=100, num_warmup=10) for step in range(101)]
    assert values[9] == pytest.approx(1.0)
    assert values[:10] == sorted(values[:10])
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[100] == pytest.approx(0.05)
