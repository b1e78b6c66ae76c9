"""Integer matrix products: both kernels against 64-bit NumPy sums, at every width and at the extremes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.core.env import cpu_info
from forerun.nn import vnni
from forerun.nn.int8_linear import Int8Linear, quantize_weight
from forerun.nn.row_kernels import LOW_LEVELS, ZERO_POINT

KERNELS = [
    pytest.param("vnni", marks=pytest.mark.skipif(not vnni.is_supported(), reason="needs AVX-512 VNNI")),
    pytest.param("onednn", marks=pytest.mark.skipif(not cpu_info().has_int8_dot, reason="needs VNNI or AMX")),
]


def twin(weight: np.ndarray, scale: np.ndarray, rows: np.ndarray, row_scale: np.ndarray) -> np.ndarray:
    """The product in 64 bits: integer sums, then one float64 scaling."""
    sums = (rows.astype(np.int64) - ZERO_POINT) @ weight.astype(np.int64).T
    high = sums[: len(row_scale)].astype(np.float64)
    low = sums[len(row_scale) :].astype(np.float64) / LOW_LEVELS if len(sums) > len(row_scale) else 0.0
    return (high + low) * row_scale.astype(np.float64)[:, None] * scale.astype(np.float64)


def assert_agrees(
    product: np.ndarray, expected: np.ndarray, *, num_levels: int, scale: np.ndarray, row_scale: np.ndarray
) -> None:
    """A few roundings of float32 relative to the largest sum; integers themselves must be exact."""
    size = np.abs(expected).max(axis=1, keepdims=True) + np.abs(scale).max() * row_scale[:, None]
    assert product.dtype == np.float32
    assert np.all(np.abs(product - expected) <= 2.0**-22 * num_levels * size)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(
    num_outputs=st.integers(1, 101),
    quarter_inputs=st.integers(1, 60),
    num_rows=st.integers(1, 40),
    num_levels=st.sampled_from([1, 2]),
    kind=st.sampled_from(["random", "low", "high", "mixed"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_kernels_add_integers_exactly(kernel, num_outputs, quarter_inputs, num_rows, num_levels, kind, seed):
    rng = np.random.default_rng(seed)
    num_inputs = 4 * quarter_inputs
    weight = rng.integers(-127, 128, (num_outputs, num_inputs)).astype(np.int8)
    rows = rng.integers(0, 256, (num_levels * num_rows, num_inputs)).astype(np.uint8)
    if kind in ("low", "mixed"):
        weight[::2], rows[::2] = -127, 0
    if kind in ("high", "mixed"):
        weight[1::2], rows[1::2] = 127, 255
    scale = rng.uniform(1e-4, 1e-2, num_outputs).astype(np.float32)
    row_scale = rng.uniform(1e-4, 1e-2, num_rows).astype(np.float32)
    product = Int8Linear(weight, scale, kernel=kernel)(rows, row_scale)
    assert product.shape == (num_rows, num_outputs)
    expected = twin(weight, scale, rows, row_scale)
    assert_agrees(product, expected, num_levels=num_levels, scale=scale, row_scale=row_scale)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_levels", [1, 2])
def test_a_row_does_not_depend_on_the_rows_beside_it(kernel, num_levels):
    rng = np.random.default_rng(0)
    linear = Int8Linear.from_float(rng.standard_normal((75, 132)).astype(np.float32), kernel=kernel)
    rows = rng.integers(0, 256, (num_levels, 40, 132)).astype(np.uint8)
    row_scale = rng.uniform(0.01, 0.02, 40).astype(np.float32)
    whole = linear(rows.reshape(-1, 132), row_scale)
    for start in (0, 7):
        for width in range(1, 33):
            part = np.ascontiguousarray(rows[:, start : start + width]).reshape(-1, 132)
            product = linear(part, row_scale[start : start + width])
            np.testing.assert_array_equal(product, whole[start : start + width])


@pytest.mark.parametrize("kernel", KERNELS)
def test_stacked_weights_are_side_by_side(kernel):
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((num, 8)).astype(np.float32) for num in (5, 3))
    rows, row_scale = rng.integers(0, 256, (2, 8)).astype(np.uint8), np.ones(2, np.float32)
    stacked = Int8Linear.from_float(first, second, kernel=kernel)
    apart = [Int8Linear.from_float(weight, kernel=kernel)(rows, row_scale) for weight in (first, second)]
    assert (stacked.out_features, stacked.in_features) == (8, 8)
    np.testing.assert_array_equal(stacked(rows, row_scale), np.concatenate(apart, axis=1))


def test_inputs_that_are_no_multiple_of_four_go_to_the_general_kernel():
    weight = np.ones((3, 6), np.int8)
    assert Int8Linear(weight, np.ones(3, np.float32)).kernel == "onednn"


@given(
    num_outputs=st.integers(1, 9),
    num_inputs=st.integers(1, 70),
    exponent=st.integers(-8, 8),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_weight_is_rounded_to_the_nearest_level(num_outputs, num_inputs, exponent, seed):
    weight = (np.random.default_rng(seed).standard_normal((num_outputs, num_inputs)) * 10.0**exponent).astype(
        np.float32
    )
    levels, scale = quantize_weight(weight)
    assert levels.dtype == np.int8
    np.testing.assert_allclose(scale, np.abs(weight).max(axis=1) / 127, rtol=1e-6)
    assert np.all(np.abs(levels).max(axis=1) == 127)
    assert np.all(np.abs(weight - levels * scale[:, None].astype(np.float64)) <= 0.5001 * scale[:, None])


def test_a_row_of_zeros_stays_zero():
    levels, scale = quantize_weight(np.zeros((2, 8), np.float32))
    assert not levels.any()
    assert np.all(np.isfinite(scale))


@pytest.mark.skipif(not vnni.is_supported(), reason="needs AVX-512 VNNI")
@pytest.mark.parametrize("num_outputs", [40, 576])
def test_threads_change_no_bit(num_outputs):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((num_outputs, 64)).astype(np.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        threaded = Int8Linear.from_float(weight, kernel="vnni")
        torch.set_num_threads(1)
        serial = Int8Linear.from_float(weight, kernel="vnni")
    finally:
        torch.set_num_threads(before)
    for num_rows in (1, 3, 20):
        rows, scale = rng.integers(0, 256, (2 * num_rows, 64), dtype=np.uint8), rng.random(num_rows).astype(np.float32)
        assert np.array_equal(threaded(rows, scale), serial(rows, scale))
