"""Linear maps with weights of 8 and 4 bits: how far rounding goes, and products against their definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.nn.float8_linear import Float8Linear, round_to_float8
from forerun.nn.int4_linear import GROUP_SIZES, Int4Linear, group_size_for, round_to_int4

ROUNDING_OF_BFLOAT16 = 2.0**-8


def matrix(rows: int, columns: int, *, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    """Rows of very different sizes, with one large number here and there."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 2, rows).unsqueeze(1) * spread
    values[::3, columns // 2] *= 20
    return values


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), columns=st.sampled_from([16, 48, 200]), spread=st.sampled_from([1e-6, 1.0, 1e4]))
def test_float8_is_off_by_a_part_in_sixteen_at_most(rows, columns, spread):
    values = matrix(rows, columns, seed=rows, spread=spread)
    levels, scales = round_to_float8(values)
    assert levels.dtype == torch.float8_e4m3fn
    error = (levels.float() * scales - values).abs()
    # Half a step: 2**-4 of a normal number, and half the least subnormal one (2**-9) below those.
    assert bool((error <= torch.maximum(values.abs() * 2.0**-4, scales * 2.0**-10) * 1.001).all())
    assert bool((levels.float().abs().amax(dim=1) == 448).all())


def test_a_row_of_zeros_stays_one():
    levels, scales = round_to_float8(torch.zeros(2, 16))
    assert bool((levels.float() == 0).all())
    assert bool(scales.isfinite().all())


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), group_size=st.sampled_from(GROUP_SIZES), spread=st.sampled_from([1e-3, 1.0, 1e3]))
def test_int4_is_off_by_half_a_scale_and_the_rounding_of_its_numbers(rows, group_size, spread):
    values = matrix(rows, 3 * group_size, seed=rows, spread=spread) + spread
    rounded = round_to_int4(values, group_size=group_size)
    assert int(rounded.levels.max()) <= 15
    for numbers in (rounded.scales, rounded.offsets):
        assert bool((numbers == numbers.to(torch.bfloat16).float()).all())
    error = (rounded.dequantized() - values).abs().view(rows, -1, group_size)
    bound = rounded.scales * (0.5 + 8 * ROUNDING_OF_BFLOAT16) + rounded.offsets.abs() * ROUNDING_OF_BFLOAT16
    assert bool((error <= bound.unsqueeze(2)).all())


def test_a_constant_group_is_kept():
    values = torch.full((16, 64), 0.25)
    rounded = round_to_int4(values, group_size=32)
    torch.testing.assert_close(rounded.dequantized(), values, rtol=0, atol=1e-6)


def test_groups_are_the_largest_that_divide():
    assert [group_size_for(count) for count in (256, 576, 36_000, 48)] == [128, 64, 32, None]


@pytest.mark.parametrize("has_bias", [False, True])
def test_float8_products_are_those_of_rounded_rows_and_weights(has_bias):
    weight, x = matrix(48, 80), matrix(7, 80, seed=1).view(7, 1, 80)
    layer = Float8Linear(weight, kernel="widened")
    if has_bias:
        layer.bias = torch.nn.Parameter(torch.arange(48.0))
    levels, scales = round_to_float8(x.view(7, 80))
    expected = (levels.double() * scales.double()) @ layer.dequantized().double().t()
    expected = expected + (layer.bias.double() if has_bias else 0)
    out = layer(x)
    assert out.shape == (7, 1, 48)
    torch.testing.assert_close(
        out.view(7, 48).double(), expected, rtol=2e-6, atol=1e-6 * float(expected.detach().abs().max())
    )


def test_scaled_and_widened_float8_products_agree():
    """PyTorch's product of 8-bit floats has a form for CPUs; here it has the layout and scales that a GPU's takes."""
    weight, x = matrix(32, 64), matrix(5, 64, seed=1)
    outs = [Float8Linear(weight, kernel=kernel)(x) for kernel in ("scaled", "widened")]
    torch.testing.assert_close(*outs, rtol=2 * ROUNDING_OF_BFLOAT16, atol=ROUNDING_OF_BFLOAT16)


def test_a_row_of_a_product_does_not_depend_on_its_neighbours():
    weight, x = matrix(32, 64), matrix(6, 64, seed=1)
    for layer in (Float8Linear(weight), Int4Linear(weight, kernel="widened")):
        alone = torch.cat([layer(row.unsqueeze(0)) for row in x])
        torch.testing.assert_close(layer(x), alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("columns", "group_size"), [(256, 128), (192, 64), (96, 32)])
def test_int4_kernels_agree_with_the_widened_weight(columns, group_size):
    weight, x = matrix(48, columns), matrix(5, columns, seed=1)
    slow = Int4Linear(weight, kernel="widened")
    assert slow.group_size == group_size
    torch.testing.assert_close(slow.dequantized(), round_to_int4(weight, group_size=group_size).dequantized())
    expected = x.double() @ slow.dequantized().double().t()
    size = x.abs().double() @ slow.dequantized().abs().double().t()
    # Rows are rounded to bfloat16, as the weights that a kernel widens are, and its sum at the end.
    for layer, rounding in ((slow, 1e-5), (Int4Linear(weight), 3 * ROUNDING_OF_BFLOAT16)):
        assert layer(x).dtype == torch.float32
        assert bool(((layer(x).double() - expected).abs() <= rounding * size).all()), layer.kernel


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_products_on_a_gpu_are_those_of_the_cpu():
    weight, x = matrix(256, 512), matrix(5, 512, seed=1)
    for kind in (Float8Linear, Int4Linear):
        expected = kind(weight, kernel="widened")(x)
        out = kind(weight.cuda())(x.cuda().to(torch.bfloat16)).cpu().float()
        assert float((out - expected).abs().max() / expected.abs().max()) < 0.02
