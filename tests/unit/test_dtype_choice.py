"""The weight format: what decides, and that the reason names it."""

import pytest

from forerun.core.dtype_choice import choose_dtype
from forerun.core.env import CpuInfo
from forerun.core.errors import ConfigError


def cpu(*flags: str) -> CpuInfo:
    return CpuInfo(model_name="example", flags=frozenset(flags), physical_core_of={})


@pytest.mark.parametrize(
    ("flags", "quantized", "dtype", "reason"),
    [
        (["avx512_vnni"], True, "int8", "VNNI or AMX"),
        (["avx2"], True, "float32", "saturate"),
        (["amx_bf16"], False, "bfloat16", "bfloat16 in hardware"),
        (["avx512_vnni"], False, "float32", "no bfloat16"),
    ],
)
def test_auto_on_a_cpu(flags, quantized, dtype, reason):
    choice = choose_dtype("auto", cpu=cpu(*flags), weights_are_quantized=quantized)
    assert choice.dtype == dtype
    assert reason in choice.reason


def test_auto_averages_an_ensemble_in_float32_but_keeps_quantised_members():
    machine = cpu("avx512_vnni", "amx_bf16")
    choice = choose_dtype("auto", cpu=machine, weights_are_quantized=False, is_ensemble=True)
    assert (choice.dtype, choice.reason) == ("float32", "the members of an ensemble are averaged as they were measured")
    assert choose_dtype("auto", cpu=machine, weights_are_quantized=True, is_ensemble=True).dtype == "int8"


def test_auto_on_a_gpu_is_bfloat16_whatever_the_cpu():
    assert choose_dtype("auto", cpu=cpu("avx512_vnni"), weights_are_quantized=True, device="cuda:0").dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["int8", "float32", "bfloat16", "float8", "int4"])
def test_a_request_is_taken_at_its_word(dtype):
    choice = choose_dtype(dtype, cpu=cpu(), weights_are_quantized=False)
    assert (choice.dtype, choice.reason) == (dtype, "asked for")


@pytest.mark.parametrize("dtype", ["float8", "int4"])
def test_an_ensemble_has_no_narrow_weights(dtype):
    with pytest.raises(ConfigError, match=f'dtype="{dtype}": is for single models'):
        choose_dtype(dtype, cpu=cpu(), weights_are_quantized=False, is_ensemble=True)


def test_int8_on_a_gpu_is_refused():
    with pytest.raises(ConfigError, match=r'dtype="int8".*cuda:0.*choose "bfloat16"'):
        choose_dtype("int8", cpu=cpu(), weights_are_quantized=True, device="cuda:0")
