"""The training loop: it optimises, and a run that was cut off goes on as if it had not been."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from forerun.core.errors import CheckpointError, TrainingError
from forerun.training.loop import LoopConfig, TrainingLoop, read_metadata
from forerun.training.optimizers import build_optimizers
from forerun.training.schedule import warmup_cosine, warmup_stable_decay


class _KilledError(Exception):
    pass


def make_loop(directory, *, num_steps=12, stop_at=None, checkpoint_every=4, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    model.register_parameter("frozen", frozen)

    def batch_at(step):
        if step == stop_at:
            raise _KilledError
        return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))

    def loss(batch):
        kept = torch.ones(8) if config.noise_seed is None else torch.rand(8).round()
        return ((model(batch.to(model.weight.dtype)).squeeze(-1) - batch.sum(dim=1)).square() * kept).mean()

    config = LoopConfig(
        num_steps=num_steps, learning_rate=0.1, num_warmup=2, checkpoint_every=checkpoint_every, **options
    )
    return model, TrainingLoop(model, config, batch_at=batch_at, loss=loss, directory=directory)


def test_the_loss_falls():
    losses = make_loop(None, num_steps=60)[1].run()
    assert len(losses) == 60
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "muon", "average_decay": 0.9, "noise_seed": 3}, {"precision": "bfloat16"}]
)
def test_a_killed_run_resumes_to_the_same_curve_and_weights(tmp_path, options):
    model, loop = make_loop(tmp_path / "whole", **options)
    whole = loop.run()
    with pytest.raises(_KilledError):
        make_loop(tmp_path / "cut", stop_at=10, **options)[1].run()
    torch.manual_seed(99)  # what the global generator held counts for nothing
    resumed_model, resumed = make_loop(tmp_path / "cut", **options)
    assert resumed.run() == whole
    assert torch.equal(resumed_model.weight, model.weight)


def test_a_finished_run_is_not_trained_again(tmp_path):
    losses = make_loop(tmp_path)[1].run()
    assert make_loop(tmp_path, stop_at=0)[1].run() == losses


def test_other_settings_do_not_resume(tmp_path):
    make_loop(tmp_path)[1].run()
    with pytest.raises(CheckpointError, match="num_steps"):
        make_loop(tmp_path, num_steps=13)[1].run()


def test_a_checkpoint_from_before_an_option_was_there_resumes(tmp_path):
    with pytest.raises(_KilledError):
        make_loop(tmp_path, stop_at=10)[1].run()
    path = tmp_path / "checkpoint.safetensors"
    record = read_metadata(path)
    config = json.loads(record["config"])
    del config["optimizer"], config["average_decay"], config["noise_seed"], config["precision"]
    save_file(load_file(path), path, metadata=record | {"config": json.dumps(config)})
    assert make_loop(tmp_path)[1].run() == make_loop(None)[1].run()


def test_muon_takes_the_matrices_inside_the_layers():
    model = nn.ModuleDict(
        {
            "embed_tokens": nn.Embedding(5, 4),
            "layer": nn.Linear(4, 4),
            "norm": nn.RMSNorm(4),
            "lm_head": nn.Linear(4, 5),
        }
    )
    named = dict(model.named_parameters())
    adam, muon = build_optimizers(named.items(), name="muon", learning_rate=0.1, weight_decay=0.5)
    assert [parameter is named["layer.weight"] for parameter in muon.param_groups[0]["params"]] == [True]
    assert sum(len(group["params"]) for group in adam.param_groups) == len(named) - 1
    assert [group["weight_decay"] for group in adam.param_groups] == [0.5, 0.0]
    assert len(build_optimizers(named.items(), name="adamw", learning_rate=0.1, weight_decay=0.5)) == 1


def test_a_step_of_muon_turns_a_matrix_by_the_same_amount_in_every_direction():
    """Whatever the gradient, the step is nearly orthogonal, and its root mean square that of AdamW (about 0.2)."""
    weight = nn.Parameter(torch.zeros(8, 8))
    [_, muon] = build_optimizers([("layer.weight", weight)], name="muon", learning_rate=0.5, weight_decay=0.0)
    weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9).square()
    muon.step()
    step = weight.detach()
    assert float(torch.linalg.cond(step)) < 3 < float(torch.linalg.cond(weight.grad))
    assert float(step.square().mean().sqrt()) == pytest.approx(0.5 * 0.2, rel=0.3)


def test_the_average_is_the_weights_along_the_run_and_comes_back_off(tmp_path):
    seen = []

    def note(step, loss, learning_rate):
        weights = model.weight.detach().clone()
        with loop.averaged():
            seen.append((weights, model.weight.detach().clone()))
        assert torch.equal(model.weight, weights)

    model = nn.Linear(1, 1)
    initial = model.weight.detach().clone()
    loop = TrainingLoop(
        model,
        LoopConfig(num_steps=4, learning_rate=0.5, average_decay=0.25, num_warmup=1),
        batch_at=lambda step: torch.ones(1, 1),
        loss=lambda batch: model(batch).square().sum(),
        on_step=note,
    )
    loop.run()
    expected = initial
    for step, (weights, average) in enumerate(seen, start=1):
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights
        torch.testing.assert_close(average, expected)
    assert torch.equal(model.weight, seen[-1][1]), "the run ends with the average"


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


def test_the_peak_is_held_until_the_rate_falls():
    values = [warmup_stable_decay(step, num_steps=100, num_warmup=10, decay_fraction=0.2) for step in range(101)]
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert values[10:81] == [1.0] * 71
    assert values[81:101] == pytest.approx([(100 - step) / 20 for step in range(81, 101)])


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
