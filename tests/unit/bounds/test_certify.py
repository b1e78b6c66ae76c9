"""The pipeline: messages return, the trained network is the decoded one, bad input is one clear error."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.bounds import verifier
from forerun.bounds.certify import certify, check_affordable, default_candidates
from forerun.bounds.message import Message, decode_message, encode_message, step_to_magnitude
from forerun.bounds.pac_bayes import kl_bound
from forerun.bounds.prior import PriorGrid, build_network
from forerun.bounds.quantize import QuantizedSubspace
from forerun.bounds.refine import refine, symbol_nats
from forerun.bounds.task import DIGITS_GRID, arrays_task, digits_task
from forerun.cli.main import main
from forerun.core.errors import ConfigError
from forerun.data.labelled import LabelledData

from .conftest import CANDIDATE, clouds

GRID = PriorGrid(
    num_inputs=4, num_classes=3, input_scale=1.0, hidden_widths=((5,), (), (3, 2)), subspace_dims=(8, 30), seeds=(0, 4)
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    levels = draw(st.sampled_from(GRID.levels))
    top, dim = (levels - 1) // 2, draw(st.sampled_from(GRID.subspace_dims))
    return Message(
        hidden_widths=draw(st.sampled_from(GRID.hidden_widths)),
        levels=levels,
        seed=draw(st.sampled_from(GRID.seeds)),
        magnitude_steps=tuple(draw(st.lists(st.integers(0, 127), min_size=top, max_size=top))),
        symbols=tuple(draw(st.lists(st.integers(-top, top), min_size=dim, max_size=dim))),
    )


@settings(max_examples=60)
@given(messages())
def test_package_and_verifier_read_the_same_message(message):
    code = encode_message(message, GRID)
    assert decode_message(code, GRID) == message
    choices, coefficients, ledger = verifier.decode(code, GRID.as_json())
    book = [0.0, *map(step_to_magnitude, message.magnitude_steps)]
    assert coefficients.tolist() == [np.sign(s) * book[abs(s)] for s in message.symbols]
    assert choices == {
        "hidden_widths": list(message.hidden_widths), "subspace_dims": len(message.symbols),
        "levels": message.levels, "seeds": message.seed,
    }  # fmt: skip
    bits = sum(ledger.values())
    assert ledger["codebook"] == pytest.approx(7 * len(message.magnitude_steps))
    assert 8 * len(code) <= 1.001 * bits + 32


def test_message_probabilities_sum_to_one():
    """All symbol strings of a tiny message: 2**-bits adds up, so the code is no more generous than a prior may be."""
    grid = PriorGrid(num_inputs=1, num_classes=2, input_scale=1.0, subspace_dims=(8,), levels=(3,))
    total = 0.0
    for pattern in range(3**8):
        symbols = tuple(pattern // 3**place % 3 - 1 for place in range(8))
        message = Message(hidden_widths=(128,), levels=3, seed=0, magnitude_steps=(0,), symbols=symbols)
        ledger = verifier.decode(encode_message(message, grid), grid.as_json())[2]
        total += 2.0 ** -ledger["symbols"]
    assert total == pytest.approx(1.0, abs=1e-9)


def test_trained_network_is_the_decoded_one():
    coefficients = np.random.default_rng(0).normal(size=30)
    network = build_network(GRID, hidden_widths=(3, 2), dim=30, seed=4)
    choices = {"hidden_widths": [3, 2], "seeds": 4}
    layers = verifier.build_layers(choices, coefficients, GRID.num_inputs, GRID.num_classes)
    hidden = np.random.default_rng(1).normal(size=(20, 4))
    scores = network(torch.from_numpy(hidden).float(), torch.from_numpy(coefficients).float()).numpy()
    for index, (weight, bias) in enumerate(layers):
        hidden = hidden @ weight.T + bias
        hidden = np.maximum(hidden, 0) if index < 2 else hidden
    assert np.allclose(scores, hidden, atol=1e-4)


def test_quantised_coefficients_are_what_the_message_decodes_to():
    grid = DIGITS_GRID
    model = QuantizedSubspace(build_network(grid, hidden_widths=(128,), dim=40, seed=0), levels=5)
    with torch.no_grad():
        model.coefficients.copy_(torch.linspace(-2, 2, 40))
    model.fit_codebook()
    message = Message(
        hidden_widths=(128,), levels=5, seed=0,
        magnitude_steps=tuple(model.magnitude_steps()), symbols=tuple(model.symbols().tolist()),
    )  # fmt: skip
    decoded = verifier.decode(encode_message(message, grid), grid.as_json())[1]
    assert np.allclose(decoded, model.quantized().detach().numpy(), atol=1e-6)
    model.quantized().sum().backward()
    assert model.coefficients.grad is not None
    assert (model.coefficients.grad == 1).all()


def test_information_by_counts_is_that_of_the_code():
    symbols = (0, 1, -2, 2, 2, 0, -1, 2)
    message = Message(hidden_widths=(5,), levels=5, seed=0, magnitude_steps=(60, 70), symbols=symbols)
    ledger = verifier.decode(encode_message(message, GRID), GRID.as_json())[2]
    assert symbol_nats([2, 2, 4]) == pytest.approx(ledger["symbols"] * np.log(2))


def test_descent_lowers_the_bound():
    data = clouds(300)
    grid = PriorGrid(num_inputs=8, num_classes=3, input_scale=0.25, subspace_dims=(8,), hidden_widths=((6,),))
    network = build_network(grid, hidden_widths=(6,), dim=8, seed=0)
    start = Message(hidden_widths=(6,), levels=3, seed=0, magnitude_steps=(80,), symbols=(1, -1, 0, 1, 1, 0, -1, 1))
    inputs, labels = torch.from_numpy(data.inputs * 0.25).float(), torch.from_numpy(data.labels)
    refined = refine(network, inputs, labels, start, other_nats=20.0, max_sweeps=3)

    def bound(message):
        choices, coefficients, ledger = verifier.decode(encode_message(message, grid), grid.as_json())
        layers = verifier.build_layers(choices, coefficients, 8, 3)
        num_errors = int(verifier.find_errors(layers, data.inputs * 0.25, data.labels).sum())
        return kl_bound(num_errors, 300, ledger["symbols"] * np.log(2) + 20.0)

    assert bound(refined) < bound(start) - 0.05


def test_result_is_not_vacuous_and_its_ledger_adds_up(made):
    result = made[3]
    assert not result.is_vacuous
    assert result.empirical_risk <= result.risk_bound < result.chance
    assert result.risk_bound == result.bounds.tightest
    assert sum(line.bits for line in result.ledger) == pytest.approx(
        result.code_length_bits - np.log2(result.delta), abs=1e-9
    )
    assert result.holdout is not None
    assert result.holdout["num_samples"] == 80
    assert result.holdout["empirical_risk"] < result.holdout["risk_bound"]


def test_same_task_gives_the_same_certificate(made, tmp_path):
    path, _, task, result = made
    assert certify(task, tmp_path / "again.zip", candidates=(CANDIDATE,)) == result
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


def test_verifier_knows_the_grid_of_digits():
    assert {"digits": DIGITS_GRID.sha256} == verifier.STANDARD_GRID_SHA256


def test_digits_are_split_without_overlap():
    task = digits_task()
    assert (len(task.train), len(task.holdout)) == (1500, 297)
    rows = np.concatenate([task.train.inputs, task.holdout.inputs])
    assert len(np.unique(rows, axis=0)) == 1797


def test_too_little_data_is_an_error_before_training_with_the_affordable_bits():
    with pytest.raises(ConfigError, match=r"num_train=30: too few .* may take 95 bits"):
        check_affordable(DIGITS_GRID, default_candidates(), num_samples=30, delta=0.05)
    without_errors, with_errors = check_affordable(DIGITS_GRID, default_candidates(), num_samples=1500, delta=0.05)
    assert without_errors == pytest.approx(1500 * np.log2(10) - np.log2(20))
    assert with_errors < without_errors


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x, y: (np.concatenate([x, x[:1]]), np.concatenate([y, y[:1]])), "repeated"),
        (lambda x, y: (np.where(x > 3, np.nan, x), y), "NaN"),
        (lambda x, y: (x, np.where(y == 1, 0, y)), "class 1 has no example"),
        (lambda x, y: (x, y - 1), "labels out of range"),
        (lambda x, y: (x, y.astype(float)), "whole numbers"),
        (lambda x, y: (x[:-1], y), "as many"),
    ],
)
def test_unusable_data_are_one_clear_error(tmp_path, change, expected):
    data = clouds(300)
    inputs, labels = change(data.inputs, data.labels)
    LabelledData(inputs=inputs, labels=labels).save(tmp_path / "x.npz")
    with pytest.raises(ConfigError, match=expected):
        arrays_task(tmp_path / "x.npz", input_scale=1.0, num_train=len(inputs))


@pytest.mark.parametrize(
    "options",
    [{"levels": (4,)}, {"subspace_dims": (2,)}, {"seeds": ()}, {"levels": (3, 3)}, {"num_classes": 1}],
)
def test_grid_out_of_range_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        PriorGrid(**({"num_inputs": 4, "num_classes": 3, "input_scale": 1.0} | options))


@pytest.mark.parametrize("delta", ["0", "1", "-1", "nan"])
def test_command_refuses_delta_before_training(tmp_path, capsys, delta):
    assert main(["certify", "--task", "digits", f"--delta={delta}", "--out", str(tmp_path / "c.zip")]) == 2
    assert "strictly between 0 and 1" in capsys.readouterr().err
    assert not (tmp_path / "c.zip").exists()


def test_verify_command_says_yes_no_and_unusable(made, tampered, tmp_path, capsys):
    path, data, task, result = made
    rest = ["--data", str(data), "--grid-sha256", task.grid.sha256, "--json", str(tmp_path / "answer.json")]
    assert main(["verify", str(path), *rest]) == 0
    assert capsys.readouterr().out.startswith("yes: error at most")
    assert json.loads((tmp_path / "answer.json").read_text())["num_errors"] == result.num_errors
    assert main(["verify", str(tampered(lambda m: m.__setitem__("delta", 0.9))), *rest]) == 1
    assert capsys.readouterr().out.startswith("no: ")
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    assert main(["verify", str(tmp_path / "broken.zip"), *rest]) == 2
    assert "corrupt" in capsys.readouterr().err
    assert main(["verify", str(path), "--data", "absent.npz"]) == 2
    assert "no such file" in capsys.readouterr().err
