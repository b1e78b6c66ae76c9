"""The training loop: it optimises, and a run that was cut off goes on as if it had not been."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from forerun.core.errors import CheckpointError, TrainingError
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


def test_a_schedule_of_ones_own_is_followed():
    model = nn.Linear(1, 1)
    rates = []
    TrainingLoop(
        model,
        LoopConfig(num_steps=3, learning_rate=0.5),
        batch_at=lambda step: torch.ones(1, 1),
        loss=lambda batch: model(batch).sum(),
        on_step=lambda step, loss, learning_rate: rates.append(learning_rate),
        learning_rate_fraction=lambda step: 1 / (1 + step),
    ).run()
    assert rates == pytest.approx([0.5, 0.25, 0.5 / 3])


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda total: total * float("nan"), "the loss at step 2 is nan"),
        (lambda total: total * float("inf"), "the loss at step 2 is -?inf"),
        # sqrt has an infinite slope at 0: a finite loss whose gradient is not.
        (lambda total: (total - total.detach()).abs().sqrt(), "the norm of the gradient at step 2 is (nan|inf)"),
    ],
)
def test_a_number_out_of_bounds_never_reaches_the_weights(tmp_path, spoilt, message):
    model = nn.Linear(2, 1)
    after_two = []

    def loss(step):
        total = model(torch.ones(1, 2)).sum()
        return spoilt(total) if step == 2 else total

    loop = TrainingLoop(
        model,
        LoopConfig(num_steps=5, checkpoint_every=1),
        batch_at=lambda step: step,
        loss=loss,
        directory=tmp_path,
        on_step=lambda step, loss, learning_rate: after_two.append(model.weight.detach().clone()),
    )
    with pytest.raises(TrainingError, match=message):
        loop.run()
    assert len(after_two) == 2
    assert torch.equal(model.weight, after_two[-1])
    assert torch.equal(load_file(tmp_path / "checkpoint.safetensors")["weight.weight"], after_two[-1])
