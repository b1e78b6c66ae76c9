"""The pipeline: messages return, the trained network is the decoded one, bad input is one clear error."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.idx_files import write_idx

from forerun.bounds import verifier
from forerun.bounds.certify import certify, check_affordable, default_candidates
from forerun.bounds.codebook import fit_codebook, signed_levels, symbol_nats, symbol_values
from forerun.bounds.message import Message, decode_message, encode_message, step_to_magnitude
from forerun.bounds.pac_bayes import kl_bound
from forerun.bounds.prior import Layer, PriorGrid, build_network, prepare_inputs
from forerun.bounds.refine import refine
from forerun.bounds.report import write_report
from forerun.bounds.task import (
    DIGITS_GRID,
    FASHION_GRID,
    MNIST1D_GRID,
    arrays_task,
    digits_task,
    fashion_task,
    mnist1d_task,
    training_data,
)
from forerun.cli.main import main
from forerun.core.errors import ConfigError
from forerun.data.labelled import LabelledData

from .conftest import CANDIDATE, clouds

DENSE = (Layer(kind="dense", width=5),)
PICTURES = (Layer(kind="bank", width=4, kernel=3, pool=2), Layer(kind="conv", width=3, kernel=2, stride=2))
GRID = PriorGrid(
    input_shape=(7, 9, 2),
    num_classes=3,
    input_scale=0.5,
    architectures=(DENSE, (), PICTURES, (Layer(kind="conv", width=2, kernel=3, pool=3), *DENSE)),
    subspace_dims=(8, 30),
    seeds=(0, 4),
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    levels = draw(st.sampled_from(GRID.levels))
    top, dim = (levels - 1) // 2, draw(st.sampled_from(GRID.subspace_dims))
    return Message(
        architecture=draw(st.sampled_from(GRID.architectures)),
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
        "architectures": [layer.as_json() for layer in message.architecture], "subspace_dims": len(message.symbols),
        "levels": message.levels, "seeds": message.seed,
    }  # fmt: skip
    bits = sum(ledger.values())
    assert ledger["codebook"] == pytest.approx(7 * len(message.magnitude_steps))
    assert 8 * len(code) <= 1.001 * bits + 32


def test_message_probabilities_sum_to_one():
    """All symbol strings of a tiny message: 2**-bits adds up, so the code is no more generous than a prior may be."""
    grid = PriorGrid(input_shape=(1, 1, 1), num_classes=2, input_scale=1.0, subspace_dims=(8,), levels=(3,))
    total = 0.0
    for pattern in range(3**8):
        symbols = tuple(pattern // 3**place % 3 - 1 for place in range(8))
        message = Message(architecture=grid.architectures[0], levels=3, seed=0, magnitude_steps=(0,), symbols=symbols)
        ledger = verifier.decode(encode_message(message, grid), grid.as_json())[2]
        total += 2.0 ** -ledger["symbols"]
    assert total == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("architecture", GRID.architectures)
def test_trained_network_is_the_decoded_one(architecture):
    coefficients = np.random.default_rng(0).normal(size=30)
    network = build_network(GRID, architecture=architecture, dim=30, seed=4)
    inputs = np.random.default_rng(1).normal(size=(20, 7 * 9 * 2))
    prepared = prepare_inputs(GRID, architecture, inputs)
    scores = network(prepared, torch.from_numpy(coefficients).float()).numpy()
    choices = {"architectures": [layer.as_json() for layer in architecture], "seeds": 4}
    layers = verifier.build_layers(choices, coefficients, GRID.input_shape, GRID.num_classes)
    expected = verifier.class_scores(layers, (inputs * 0.5).reshape(20, 7, 9, 2).transpose(0, 3, 1, 2))
    assert np.allclose(scores, expected, atol=1e-4)
    assert expected.std() > 0.1


def test_codebook_and_symbols_are_what_the_message_decodes_to():
    coefficients = torch.linspace(-2, 2, 40)
    steps = fit_codebook(coefficients, 5)
    symbols = (coefficients[:, None] - signed_levels(steps)).abs().argmin(dim=1) - 2
    message = Message(
        architecture=DIGITS_GRID.architectures[0], levels=5, seed=0,
        magnitude_steps=tuple(steps), symbols=tuple(symbols.tolist()),
    )  # fmt: skip
    decoded = verifier.decode(encode_message(message, DIGITS_GRID), DIGITS_GRID.as_json())[1]
    assert np.allclose(decoded, symbol_values(symbols, steps).numpy(), atol=1e-6)
    assert float((coefficients - torch.from_numpy(decoded)).abs().max()) < 0.7


def test_information_by_counts_is_that_of_the_code():
    symbols = (0, 1, -2, 2, 2, 0, -1, 2)
    message = Message(architecture=DENSE, levels=5, seed=0, magnitude_steps=(60, 70), symbols=symbols)
    ledger = verifier.decode(encode_message(message, GRID), GRID.as_json())[2]
    assert symbol_nats([2, 2, 4]) == pytest.approx(ledger["symbols"] * np.log(2))


def test_descent_lowers_the_bound():
    data = clouds(300)
    layers = (Layer(kind="dense", width=6),)
    grid = PriorGrid(
        input_shape=(1, 8, 1), num_classes=3, input_scale=0.25, subspace_dims=(8,), architectures=(layers,)
    )
    network = build_network(grid, architecture=layers, dim=8, seed=0)
    start = Message(architecture=layers, levels=3, seed=0, magnitude_steps=(80,), symbols=(1, -1, 0, 1, 1, 0, -1, 1))
    inputs, labels = prepare_inputs(grid, layers, data.inputs), torch.from_numpy(data.labels)
    refined = refine(network, inputs, labels, start, num_samples=300, other_nats=20.0, max_sweeps=3)

    def bound(message):
        choices, coefficients, ledger = verifier.decode(encode_message(message, grid), grid.as_json())
        decoded = verifier.build_layers(choices, coefficients, grid.input_shape, 3)
        num_errors = int(verifier.count_errors(decoded, data.inputs, data.labels, grid.as_json()).sum())
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


def test_verifier_knows_the_standard_grids():
    grids = {"digits": DIGITS_GRID, "fashion-mnist": FASHION_GRID, "mnist1d": MNIST1D_GRID}
    assert {name: grid.sha256 for name, grid in grids.items()} == verifier.STANDARD_GRID_SHA256


def test_digits_are_split_without_overlap():
    task = digits_task()
    assert (len(task.train), len(task.holdout)) == (1500, 297)
    rows = np.concatenate([task.train.inputs, task.holdout.inputs])
    assert len(np.unique(rows, axis=0)) == 1797


def test_too_little_data_is_an_error_before_training_with_the_affordable_bits():
    with pytest.raises(ConfigError, match=r"num_train=30: too few .* may take 95 bits"):
        check_affordable(DIGITS_GRID, default_candidates("digits"), num_samples=30, delta=0.05)
    without_errors, with_errors = check_affordable(
        DIGITS_GRID, default_candidates("digits"), num_samples=1500, delta=0.05
    )
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


@pytest.mark.parametrize("code", [lambda y: y, lambda y: (y * 7 + 2) % 5 - 1.5])
def test_label_among_the_inputs_is_found_in_any_code(tmp_path, code):
    data = clouds(300)
    leaked = np.column_stack([data.inputs[:, :2], code(data.labels), data.inputs[:, 2:]])
    LabelledData(inputs=leaked, labels=data.labels).save(tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="column 2 of the inputs tells the class"):
        arrays_task(tmp_path / "x.npz", input_scale=1.0)
    leaked[:, 2] = np.where(data.labels == 2, 1, data.labels)  # Two classes alike: no leak of the label.
    LabelledData(inputs=leaked, labels=data.labels).save(tmp_path / "y.npz")
    assert arrays_task(tmp_path / "y.npz", input_scale=1.0).grid.num_classes == 3


@pytest.mark.parametrize(
    "options",
    [
        {"levels": (4,)},
        {"subspace_dims": (2,)},
        {"seeds": ()},
        {"levels": (3, 3)},
        {"num_classes": 1},
        {"architectures": (PICTURES + PICTURES,)},
    ],
)
def test_grid_out_of_range_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        PriorGrid(**({"input_shape": (1, 4, 1), "num_classes": 3, "input_scale": 1.0} | options))


@pytest.mark.parametrize(
    "options", [[], ["--task", "fashion-mnist"], ["--task", "digits", "--data", "x.npz"], ["--data", "absent.npz"]]
)
def test_command_says_which_data_it_wants(tmp_path, capsys, options):
    assert main(["certify", *options, "--out", str(tmp_path / "c.zip")]) == 2
    assert "--data" in capsys.readouterr().err


def test_fashion_folder_loses_its_repeats_and_is_split_alike_by_both_sides(tmp_path):
    source = np.random.default_rng(3)
    pictures = source.integers(0, 256, (300, 28, 28), dtype=np.uint8)
    labels = source.integers(0, 10, 300, dtype=np.uint8)
    for name, part in (("train", slice(0, 200)), ("t10k", slice(190, 300))):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", pictures[part], 8)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", labels[part], 8)
    task = fashion_task(tmp_path, 250)
    assert task.holdout is not None
    assert (len(task.train), len(task.holdout)) == (250, 50)
    again = training_data(str(tmp_path), {"claims": {"num_samples": 250}})
    assert (again.inputs == task.train.inputs).all()
    assert (again.labels == task.train.labels).all()


def test_mnist1d_is_split_into_draws_of_one_sampler():
    task = mnist1d_task()
    assert task.holdout is not None
    assert (len(task.train), len(task.holdout)) == (40_000, 10_000)


def test_report_page_has_the_bound_and_every_cost(made, tmp_path):
    _, _, task, result = made
    write_report(tmp_path / "x.html", "a < b", result)
    page = (tmp_path / "x.html").read_text()
    assert f"{result.risk_bound:.2%}" in page
    assert "a &lt; b" in page
    for line in result.ledger:
        assert f"<td>{line.name}</td>" in page
    assert page.count("<rect") == 7 + sum(line.bits > 0 for line in result.ledger)
    assert "http" not in page
    assert task.grid.sha256 in page


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
    assert main(["verify", str(path), *rest, "--module", "nets:build"]) == 2
    assert "no certificate of a module" in capsys.readouterr().err
    assert main(["verify", str(path), "--data", "absent.npz"]) == 2
    assert "no such file" in capsys.readouterr().err
