"""A model of the user's, bounded by its agreement with a certified one."""

import json

import numpy as np
import pytest

from forerun.bounds import verifier
from forerun.bounds.agreement import bound_by_agreement
from forerun.bounds.pac_bayes import holdout_bound
from forerun.bounds.task import arrays_task
from forerun.cli import certify as command
from forerun.cli.main import main
from forerun.core.errors import ConfigError
from forerun.data.labelled import LabelledData


@pytest.fixture
def predicted(made):
    """Return the hold-out, with predictions of a model that is the certified one but for seven examples."""
    manifest, message = verifier.read_certificate(made[0])
    choices, coefficients, _ = verifier.decode(message, manifest["grid"])
    layers = verifier.build_layers(choices, coefficients, manifest["grid"]["input_shape"], 3)
    inputs = made[2].holdout.inputs
    labels = verifier.class_scores(layers, (inputs * 0.25).reshape(-1, 1, 1, 8)).argmax(axis=1)
    labels[:7] = (labels[:7] + 1) % 3
    return LabelledData(inputs=inputs, labels=labels)


def test_sum_of_both_statements(made, predicted):
    found = bound_by_agreement(made[0], made[2].train, predicted, certified_bound=0.2, delta=0.05)
    assert (found.num_disagreements, found.num_unlabelled) == (7, 80)
    assert found.risk_bound == 0.2 + holdout_bound(num_errors=7, num_samples=80, delta=0.05)
    assert found.failure_probability == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data, train: train.rows(np.arange(5)), "5 are training examples"),
        (lambda data, train: data.rows(np.array([0, 1, 1])), "1 are repeated"),
        (lambda data, train: LabelledData(inputs=data.inputs, labels=data.labels + 1), "must be classes 0 to 2"),
        (lambda data, train: LabelledData(inputs=data.inputs[:, 1:], labels=data.labels), "of 7 features"),
    ],
)
def test_examples_that_say_nothing_are_refused(made, predicted, change, expected):
    train = made[2].train
    with pytest.raises(ConfigError, match=expected):
        bound_by_agreement(made[0], train, change(predicted, train), certified_bound=0.2, delta=0.05)


def test_command_prints_and_writes_it(made, predicted, tmp_path, capsys, monkeypatch):
    path, data, _, result = made
    predicted.save(tmp_path / "p.npz")

    def copy(task, out, **options):
        out.write_bytes(path.read_bytes())
        return result

    monkeypatch.setattr("forerun.bounds.certify.certify", copy)
    options = ["--data", str(data), "--input-scale", "0.25", "--out", str(tmp_path / "c.zip")]
    written = ["--agreement-with", str(tmp_path / "p.npz"), "--json", str(tmp_path / "c.json")]
    assert main([command.__name__.rpartition(".")[2], *options, *written]) == 0
    assert "7 disagreements in 80 examples" in capsys.readouterr().out
    assert json.loads((tmp_path / "c.json").read_text())["agreement"]["num_disagreements"] == 7
    assert arrays_task(data, input_scale=0.25).train.labels.tolist() == made[2].train.labels.tolist()
