"""The fused kernels against plain NumPy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forerun.nn import cache_blocks
from forerun.nn import row_kernels as kernels
from forerun.nn.fake_quant import FakeQuantLinear, fake_quantize_linears, fake_quantize_rows


def dequantize(rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What quantised rows stand for, in float64."""
    levels = rows.astype(np.float64) - kernels.ZERO_POINT
    high, low = levels[: len(scale)], levels[len(scale) :]
    return (high + (low / kernels.LOW_LEVELS if len(low) else 0.0)) * scale.astype(np.float64)[:, None]


def buffers(num_rows: int, width: int, num_levels: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((num_levels * num_rows, width), np.uint8), np.zeros(num_rows, np.float32)


def assert_quantised(rows: np.ndarray, scale: np.ndarray, expected: np.ndarray, *, num_levels: int) -> None:
    """Half a level, plus the rounding of float32 arithmetic before it."""
    np.testing.assert_allclose(scale, np.abs(expected).max(axis=1) / 127, rtol=2e-6, atol=1e-14)
    level = scale.astype(np.float64)[:, None] / (kernels.LOW_LEVELS if num_levels == 2 else 1)
    assert np.all(np.abs(dequantize(rows, scale) - expected) <= 0.5 * level + 1e-4 * scale[:, None])


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("num_levels", [1, 2])
@settings(max_examples=60, deadline=None)
@given(x=arrays(np.float32, (3, 20), elements=st.floats(-1e6, 1e6, width=32)))
def test_rows_are_rounded_to_the_nearest_level(num_levels, x):
    rows, scale = buffers(3, 20, num_levels)
    kernels.quantize_rows(x, rows, scale)
    expected = np.where(np.abs(x).max(axis=1, keepdims=True) <= 1e-12, 0.0, x.astype(np.float64))
    assert_quantised(rows, np.where(scale > 1e-14, scale, 0), expected, num_levels=num_levels)


@pytest.mark.parametrize("num_levels", [1, 2])
def test_add_and_norm(num_levels):
    x, update, gain = random(5, 36), random(5, 36, seed=1), random(36, seed=2)
    total = x.astype(np.float64) + update
    expected = total / np.sqrt((total**2).mean(axis=1, keepdims=True) + 1e-3) * gain
    rows, scale = buffers(5, 36, num_levels)
    stream = x.copy()
    kernels.add_norm_quantize(stream, update, gain, 1e-3, rows, scale)
    np.testing.assert_array_equal(stream, x + update)
    assert_quantised(rows, scale, expected, num_levels=num_levels)


@pytest.mark.parametrize("num_levels", [1, 2])
@pytest.mark.parametrize("size", [1.0, 30.0, 200.0])
def test_gated_activation(num_levels, size):
    gate_up = random(4, 44) * np.float32(size)
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    rows, scale = buffers(4, 22, num_levels)
    kernels.silu_mul_quantize(gate_up, rows, scale)
    assert_quantised(rows, scale, gate / (1 + np.exp(-gate)) * up, num_levels=num_levels)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(6, 2, 8), (3, 3, 40), (4, 1, 2)])
def test_queries_keys_and_values_go_where_they_belong(has_bias, has_norm, num_heads, num_kv_heads, head_dim):
    num_rows, all_heads, eps, empty = 4, num_heads + 2 * num_kv_heads, 1e-5, np.empty(0, np.float32)
    qkv, bias = random(num_rows, all_heads * head_dim), random(all_heads * head_dim, seed=1)
    q_norm, k_norm = random(head_dim, seed=2), random(head_dim, seed=3)
    angles = random(50, head_dim // 2, seed=4)
    blocks, lanes = np.array([0, 3, 1, 1]), np.array([0, 31, 5, 13])
    positions = np.array([0, 12, 5, 49])
    keys, values = cache_blocks.empty_cache(num_blocks=4, num_kv_heads=num_kv_heads, head_dim=head_dim)
    queries = np.zeros((num_kv_heads, num_rows * num_heads // num_kv_heads, head_dim), np.float32)
    kernels.write_qkv(
        qkv, bias if has_bias else empty, q_norm if has_norm else empty, k_norm if has_norm else empty, eps,
        np.cos(angles), np.sin(angles), positions, blocks, lanes, queries, keys, values,
    )  # fmt: skip

    heads = (qkv.astype(np.float64) + (bias if has_bias else 0)).reshape(num_rows, all_heads, head_dim)
    q, k, v = np.split(heads, [num_heads, num_heads + num_kv_heads], axis=1)

    def turned(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        if has_norm:
            x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * gain
        pairs = x[..., : head_dim // 2] + 1j * x[..., head_dim // 2 :]
        pairs = pairs * np.exp(1j * angles[positions].astype(np.float64))[:, None]
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    expected = turned(q, q_norm).reshape(num_rows, num_kv_heads, -1, head_dim).swapaxes(0, 1) * head_dim**-0.5
    np.testing.assert_allclose(queries, expected.reshape(queries.shape), atol=2e-5)
    by_slot = keys.swapaxes(-1, -2)
    np.testing.assert_allclose(by_slot[blocks, :, lanes], turned(k, k_norm), atol=2e-5)
    np.testing.assert_allclose(values[blocks, :, lanes, :head_dim], v, atol=1e-6)
    assert np.count_nonzero(by_slot.any(axis=(1, 3))) == num_rows
    assert np.count_nonzero(values.any(axis=(1, 3))) == num_rows
    assert not values[..., head_dim:].any()


@settings(max_examples=60, deadline=None)
@given(x=arrays(np.float32, (2, 30), elements=st.floats(-1e4, 1e4, width=32).filter(lambda v: v == 0 or abs(v) > 1e-6)))
def test_training_rounds_as_the_kernel_does(x):
    rows, scale = buffers(2, 30, 1)
    kernels.quantize_rows(x, rows, scale)
    rounded = fake_quantize_rows(torch.from_numpy(x)).numpy()
    # Half-way values may go either way: the kernel rounds them up, torch to even.
    level = np.maximum(scale, 1e-14)[:, None]
    is_tie = np.abs(np.abs(x / level) % 1 - 0.5) < 1e-4
    difference = np.abs(rounded - dequantize(rows, scale))
    assert np.all(difference <= np.where(is_tie, 1.001, 1e-3) * level)


def test_rounding_lets_gradients_pass():
    x = torch.randn(3, 8, requires_grad=True)
    fake_quantize_rows(x).backward(torch.full((3, 8), 2.0))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((3, 8), 2.0))


def test_linears_are_switched_in_place():
    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Sequential(torch.nn.Linear(4, 4)))
    weights = list(module.parameters())
    x = torch.randn(5, 8)
    before = module(x)
    fake_quantize_linears(module)
    assert all(isinstance(m, FakeQuantLinear) for m in module.modules() if isinstance(m, torch.nn.Linear))
    assert all(a is b for a, b in zip(weights, module.parameters(), strict=True))
    assert not torch.equal(module(x), before)
    assert torch.allclose(module(x), before, atol=0.05)
