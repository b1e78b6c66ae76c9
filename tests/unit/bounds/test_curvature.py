"""Effective dimensionality against all eigenvalues."""

import numpy as np
import pytest
import torch

from forerun.bounds.curvature import hessian_product, lanczos_quadrature, sample_spectrum
from forerun.bounds.digits_curvature import measure_digits_curvature
from forerun.core.errors import ConfigError


def symmetric(eigenvalues: list[float], seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, generator=source, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


def test_full_lanczos_integrates_any_function_of_a_vector_exactly():
    matrix = symmetric([-2.0, -0.1, 0.0, 0.3, 1.0, 5.0, 40.0])
    start = torch.ones(7, dtype=torch.float64) / 7**0.5
    nodes, weights = lanczos_quadrature(lambda v: matrix @ v, start, 7)
    values, vectors = torch.linalg.eigh(matrix)
    expected = float((torch.exp(-values) * (vectors.T @ start) ** 2).sum())
    assert (weights * np.exp(-nodes)).sum() == pytest.approx(expected, rel=1e-9)


@pytest.mark.statistical
@pytest.mark.parametrize("z", [0.01, 1.0, 30.0])
def test_interval_covers_the_exact_value_and_negative_eigenvalues_count_as_zero(z):
    """Seeds are fixed; with fresh ones a Student interval of 95% widened threefold fails less than once in 10,000."""
    eigenvalues = [*np.logspace(-4, 3, 60), *[-5.0, -0.5]]
    matrix = symmetric(eigenvalues)
    found = sample_spectrum(lambda v: matrix @ v, 62, num_probes=20, num_steps=62).effective_dimension(z)
    exact = sum(max(x, 0) / (max(x, 0) + z) for x in eigenvalues)
    half = (found.high - found.low) / 2
    assert abs(found.value - exact) <= 3 * half + 1e-9
    assert 0 <= found.low <= found.value <= found.high <= 62


def test_lanczos_stops_where_the_space_is_exhausted():
    found = sample_spectrum(lambda v: 3 * v, 50, num_probes=2, num_steps=40).effective_dimension(1.0)
    assert found.value == pytest.approx(50 * 0.75, rel=1e-9)
    assert found.high - found.low < 1e-6


def test_hessian_product_is_the_dense_hessian():
    point = torch.linspace(-1, 1, 6, dtype=torch.float64)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return torch.sin(values).prod() + (values**4).sum()

    dense = torch.autograd.functional.hessian(loss, point)
    product = hessian_product(loss, point)
    rows = torch.stack([product(row) for row in torch.eye(6, dtype=torch.float64)])
    assert torch.allclose(rows, dense, atol=1e-12)


def test_network_on_digits_by_both_conventions_and_exactly():
    found = measure_digits_curvature(
        width=3,
        z=1.0,
        convention="mean",
        num_probes=8,
        num_steps=40,
        exact=True,
        num_training_steps=40,
        num_samples=300,
    )
    half = (found["high"] - found["low"]) / 2
    assert abs(found["value"] - found["exact"]) <= 3 * half + 0.02 * found["exact"]
    assert found["num_parameters"] == 3 * 65 + 10 * 4
    assert found["other_convention"]["value"] > 5 * found["value"]


@pytest.mark.parametrize("z", [0.0, -1.0, float("nan")])
def test_scale_out_of_range_is_refused(z):
    with pytest.raises(ConfigError, match="need z > 0"):
        sample_spectrum(lambda v: v, 5).effective_dimension(z)


@pytest.mark.parametrize("change", [{"num_probes": 1}, {"num_steps": 0}])
def test_numbers_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match="2 or more probes"):
        sample_spectrum(lambda v: v, 5, **change)
