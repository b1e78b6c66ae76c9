"""Sparse readouts of cells: trained features are the verifier's, symbols return, every step lowers the bound."""

import numpy as np
import pytest
import torch

from forerun.bounds import verifier
from forerun.bounds.certify import Candidate, certify
from forerun.bounds.codebook import count_magnitudes, symbol_nats
from forerun.bounds.message import Message, count_tables, decode_message, encode_message
from forerun.bounds.prior import Layer, PriorGrid, num_readout_values, prepare_inputs
from forerun.bounds.readout import ReadoutConfig, expand_readout, train_readout
from forerun.bounds.readout_descent import CodedReadout
from forerun.bounds.task import FASHION_GRID, Task
from forerun.core.errors import ConfigError
from forerun.data.labelled import LabelledData

CELLS = (Layer(kind="cells", width=4, kernel=3, pool=4),)
DIM = 6 * 9 * 3 + 3
GRID = PriorGrid(
    input_shape=(12, 12, 1), num_classes=3, input_scale=1.0, architectures=(CELLS, ()), subspace_dims=(16, DIM)
)
QUICK = ReadoutConfig(
    num_steps=100, batch_size=100, learning_rate=0.05, nat_weight=0.5, rounding_weights=(1.5,), num_trials=100
)


def strokes(num_samples: int) -> LabelledData:
    """Draw pictures with a bar that lies, stands or leans, at places by chance, in noise."""
    source = np.random.default_rng(3)
    labels = source.integers(0, 3, num_samples)
    pictures = source.random((num_samples, 12, 12)) * 0.3
    for picture, label in zip(pictures, labels, strict=True):
        row, column = source.integers(1, 5, 2)
        for place in range(7):
            picture[row + place * (label != 0), column + place * (label != 1)] += 0.7
    return LabelledData(inputs=pictures.reshape(num_samples, -1), labels=labels)


@pytest.fixture(scope="module")
def task() -> Task:
    torch.set_num_threads(1)
    data = strokes(700)
    return Task(name="arrays", grid=GRID, train=data.rows(np.arange(600)), holdout=data.rows(np.arange(600, 700)))


def test_every_cells_architecture_of_the_standard_grid_has_its_dimension():
    cells = [layers for layers in FASHION_GRID.architectures if layers[0].kind == "cells"]
    assert len(cells) == 8
    assert all(num_readout_values(FASHION_GRID, layers) in FASHION_GRID.subspace_dims for layers in cells)


def test_features_of_training_are_the_verifiers(task):
    coefficients = np.random.default_rng(0).normal(size=DIM)
    inputs = task.train.inputs[:20]
    features = prepare_inputs(GRID, CELLS, inputs).flatten(1).numpy()
    weights, biases = coefficients[:-3].reshape(3, -1), coefficients[-3:]
    choices = {"architectures": [layer.as_json() for layer in CELLS], "seeds": 0}
    layers = verifier.build_layers(choices, coefficients, GRID.input_shape, 3)
    expected = verifier.class_scores(layers, inputs.reshape(20, 1, 12, 12))
    assert np.allclose(features @ weights.T + biases, expected, atol=1e-4)
    assert expected.std() > 0.1


def test_cosine_transform_keeps_lengths_and_cells_ignore_contrast():
    cells = np.random.default_rng(1).random((5, 5, 3, 4)) + 0.5
    edges = cells[:, :4]
    total = edges.sum(axis=1)
    expected = (edges.sum(axis=1) / (total + 0.05) + total + cells[:, 4]).sum(axis=(1, 2))
    assert np.allclose(np.square(verifier.cosine_spectrum(cells)).sum(axis=(1, 2, 3)), expected)
    strong = verifier.cosine_spectrum(np.concatenate([100 * edges, cells[:, 4:]], axis=1))[:, :4]
    stronger = verifier.cosine_spectrum(np.concatenate([900 * edges, cells[:, 4:]], axis=1))[:, :4]
    assert np.allclose(strong, stronger, atol=1e-3)


def test_message_returns_and_costs_what_its_tables_of_counts_say():
    source = np.random.default_rng(2)
    symbols = tuple(int(s) for s in source.integers(-2, 3, DIM) * (source.random(DIM) < 0.2))
    message = Message(architecture=CELLS, levels=5, seed=0, magnitude_steps=(60, 70), symbols=symbols)
    code = encode_message(message, GRID)
    assert decode_message(code, GRID) == message
    tables = np.array(count_tables(GRID, CELLS, DIM))
    nats = sum(symbol_nats(count_magnitudes(np.array(symbols)[tables == table], 2)) for table in range(7))
    assert verifier.decode(code, GRID.as_json())[2]["symbols"] * np.log(2) == pytest.approx(nats)
    assert (np.bincount(tables, minlength=7) == [3, 6 * 3 * 4, 6 * 3 * 2, 0, 6 * 3 * 2, 6 * 3, 0]).all()


def test_cells_with_another_number_of_coefficients_are_refused(task, tmp_path):
    message = Message(architecture=(), levels=5, seed=0, magnitude_steps=(60, 70), symbols=(0,) * 16)
    code = bytearray(encode_message(message, GRID))
    code[0] &= 0x7F  # The first choice, of two architectures, is the first bit.
    with pytest.raises(ValueError, match="16 coefficients"):
        verifier.decode(bytes(code), GRID.as_json())
    with pytest.raises(ConfigError, match=f"need {DIM} and 5"):
        certify(task, tmp_path / "x.zip", candidates=(Candidate(dim=16, levels=5),))
    with pytest.raises(ConfigError, match="cells beside other layers"):
        PriorGrid(input_shape=(9, 9, 1), num_classes=2, input_scale=1.0, architectures=((*CELLS, *CELLS),))


def test_a_dearer_nat_leaves_less_in_the_weights(task):
    features = prepare_inputs(GRID, CELLS, task.train.inputs).flatten(1)
    labels = torch.from_numpy(task.train.labels)
    energies = []
    for nat_weight in (0.5, 20.0):
        config = ReadoutConfig(num_steps=60, batch_size=100, learning_rate=0.03, nat_weight=nat_weight)
        energies.append(float(train_readout(features, labels, num_places=9, config=config)[:, :-1].square().sum()))
    assert energies[1] < 0.5 * energies[0]


def test_gauss_newton_form_is_the_curvature_of_the_loss(task):
    columns = torch.from_numpy(np.random.default_rng(4).normal(size=(50, 4)))
    labels, weights = torch.from_numpy(task.train.labels[:50]), torch.randn(3, 4, dtype=torch.float64)

    def loss(flat):
        return torch.nn.functional.cross_entropy(columns @ flat.view(3, 4).T, labels)

    form = expand_readout(columns, labels, weights, num_curvature_samples=50)
    assert torch.allclose(form.gradient, torch.func.grad(loss)(weights.flatten()))
    assert torch.allclose(form.curvature.double(), torch.func.hessian(loss)(weights.flatten()), atol=1e-6)


def test_descent_keeps_its_counts_and_scores_and_lowers_the_bound(task):
    columns = torch.cat([prepare_inputs(GRID, CELLS, task.train.inputs).flatten(1), torch.ones(600, 1)], dim=1)
    labels = torch.from_numpy(task.train.labels)
    tables = (torch.arange(columns.shape[1]) % 7).repeat(3, 1)
    readout = CodedReadout(columns, labels, torch.zeros_like(tables), [60, 70], tables, 20.0)
    before = readout.best
    readout.descend(nat_weight=2.0, num_passes=2, num_trials=80)
    again = CodedReadout(columns, labels, readout.symbols, [60, 70], tables, 20.0)
    assert readout.best == pytest.approx(again.best, abs=1e-5)
    assert readout.counts == again.counts
    assert readout.best < before - 0.05


def test_certificate_of_cells_from_search_to_verdict(task, tmp_path):
    candidate = Candidate(dim=DIM, levels=5, readout=QUICK)
    result = certify(task, tmp_path / "cells.zip", candidates=(candidate,))
    assert result.risk_bound < 0.5
    assert result.holdout is not None
    assert result.holdout["empirical_risk"] < result.risk_bound
    found = verifier.verify(tmp_path / "cells.zip", task.train.inputs, task.train.labels, GRID.sha256)
    assert found["num_errors"] == result.num_errors
