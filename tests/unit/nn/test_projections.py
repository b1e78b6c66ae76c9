"""Projections: each is the matrix that its definition says, differentiable, and moves all values alike."""

import numpy as np
import pytest
import torch
from torch import nn

from forerun.core.errors import ConfigError
from forerun.nn.projections.base import random_order, random_signs
from forerun.nn.projections.build import PROJECTION_NAMES, build_projection
from forerun.nn.subspace_module import ModuleSubspace, natural_size, trained_parameters

SHAPES = ((13, 5), (64, 64), (200, 70), (1, 1))


def words(stream: int, count: int) -> np.ndarray:
    return np.random.default_rng(stream + 7).integers(0, 2**64, count, dtype=np.uint64)


def hadamard(length: int) -> np.ndarray:
    """Return Hadamard's matrix from its formula: the sign is the parity of the bits that row and column share."""
    return np.array([[(-1.0) ** bin(row & column).count("1") for column in range(length)] for row in range(length)])


def dense_matrix(num_values: int, dim: int) -> np.ndarray:
    return random_signs(words, 0, num_values, dim).numpy() / np.sqrt(dim)


def sparse_matrix(num_values: int, dim: int) -> np.ndarray:
    per_column = int(np.ceil(np.sqrt(num_values)))
    matrix, drawn = np.zeros((num_values, dim)), iter(words(0, dim * per_column).tolist())
    for column in range(dim):
        for _ in range(per_column):
            word = next(drawn)
            matrix[(word >> 1) % num_values, column] += 1 if word & 1 else -1
    return matrix * np.sqrt(num_values / (per_column * dim))


def fastfood_matrix(num_values: int, dim: int) -> np.ndarray:
    length = 1
    while length < num_values:
        length *= 2
    first, second = (((words(stream, length) >> np.uint64(11)) + 0.5) / 2.0**53 for stream in (2, 3))
    gaussians = np.diag(np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second))
    order = np.eye(length)[random_order(words, 1, length).numpy()]
    signs = np.diag(random_signs(words, 0, 1, length)[0].numpy())
    product = hadamard(length) @ gaussians @ order @ hadamard(length) @ signs
    return product[:num_values, :dim] / np.sqrt(length * dim)


def kronecker_matrix(num_values: int, dim: int) -> np.ndarray:
    rows, columns = (int(np.ceil(np.sqrt(count))) for count in (num_values, dim))
    other_rows, other_columns = -(-num_values // rows), -(-dim // columns)
    product = np.kron(
        random_signs(words, 0, rows, columns).numpy(), random_signs(words, 1, other_rows, other_columns).numpy()
    )
    order = random_order(words, 2, rows * other_rows).numpy()
    return product[order][:num_values, :dim] / np.sqrt(dim)


MATRICES = {
    "dense": dense_matrix, "sparse": sparse_matrix, "fastfood": fastfood_matrix, "kronecker": kronecker_matrix
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PROJECTION_NAMES)
def test_is_the_matrix_of_its_definition(name, shape):
    num_values, dim = shape
    projection, matrix = build_projection(name, num_values=num_values, dim=dim, words=words), MATRICES[name](*shape)
    coefficients = torch.randn(dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    values = projection(coefficients)
    np.testing.assert_allclose(values.detach(), matrix @ coefficients.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(projection.column(dim - 1), matrix[:, -1], atol=1e-12)
    weights = torch.linspace(-1, 1, num_values, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(values @ weights, coefficients)
    np.testing.assert_allclose(gradient, matrix.T @ weights.numpy(), atol=1e-12)
    assert projection.float()(coefficients.detach().float()).dtype == torch.float32


@pytest.mark.parametrize("name", PROJECTION_NAMES)
def test_rows_have_squares_that_sum_to_one_on_average(name):
    """Signs give exactly 1; the words are fixed, so there is no false alarm."""
    matrix = MATRICES[name](1000, 100)
    squares = np.square(matrix).sum(axis=1)
    assert squares.mean() == pytest.approx(1, abs=1e-9 if name in {"dense", "kronecker"} else 0.1)
    assert abs(matrix.T @ matrix / 10 - np.eye(100)).max() < 0.6  # directions are far from parallel


def test_bits_of_words_are_taken_from_the_least_on():
    signs = random_signs(lambda stream, count: np.arange(1, count + 1, dtype=np.uint64), 0, 2, 3)
    assert signs.tolist() == [[1, -1, -1], [-1, 1, -1]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "film"}, "projection='film'"),
        ({"dim": 11}, "dim=11: must be 1 to 10"),
        ({"dim": 0}, "dim=0"),
        ({"num_values": 1 << 27, "dim": 2}, "take a sparse, fastfood or kronecker"),
    ],
)
def test_what_cannot_be_is_refused(options, expected):
    with pytest.raises(ConfigError, match=expected):
        build_projection(**({"name": "dense", "num_values": 10, "dim": 5, "words": words} | options))


def test_module_moves_along_the_projection_by_the_size_of_each_parameter():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.LayerNorm(3), nn.Linear(3, 2))
    module[3].requires_grad_(requires_grad=False)
    start = {name: value.detach().clone() for name, value in module.state_dict().items()}
    names = list(trained_parameters(module))
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    projection = build_projection("dense", num_values=21, dim=4, words=words)
    network = ModuleSubspace(module, projection).double()
    coefficients = torch.tensor([0.5, -1.0, 0.25, 2.0], dtype=torch.float64)
    moved, moves = dict(start), torch.from_numpy(dense_matrix(21, 4)) @ coefficients
    for name in names:
        part, moves = moves.split([start[name].numel(), len(moves) - start[name].numel()])
        size = start[name].double().square().mean().sqrt() if start[name].any() else (1 / 3 / 3) ** 0.5
        assert natural_size(start[name]) == pytest.approx(float(size))
        moved[name] = start[name].double() + size * part.view_as(start[name])
    expected = nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.LayerNorm(3), nn.Linear(3, 2)).double()
    expected.load_state_dict(moved)
    inputs = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(network(inputs, coefficients), expected(inputs), atol=1e-6, rtol=1e-6)
        shifted = network.values(coefficients) + network.column(2)
    torch.testing.assert_close(shifted, network.values(coefficients + torch.tensor([0, 0, 1.0, 0])))


def test_projection_of_another_size_is_refused():
    with pytest.raises(ValueError, match="20 values, the module 15"):
        ModuleSubspace(nn.Linear(4, 3), build_projection("dense", num_values=20, dim=4, words=words))
