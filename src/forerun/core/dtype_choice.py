"""Which number format the weights get in memory, and why."""

from dataclasses import dataclass
from typing import Literal

from forerun.core.env import CpuInfo
from forerun.core.errors import ConfigError

DtypeName = Literal["int8", "float32", "bfloat16", "float8", "int4"]
"""``float8`` is e4m3 with a scale for each output, ``int4`` has scales for groups of inputs; both for the projections
of the layers, beside a head in bfloat16 or float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DtypeChoice:
    """A weight format with its reason.

    Attributes:
        dtype: Format of the weights of the linear layers.
        reason: One clause a person can read: what was asked for, or which fact of the machine decided.
    """

    dtype: DtypeName
    reason: str


def choose_dtype(
    requested: Literal["auto"] | DtypeName,
    *,
    cpu: CpuInfo,
    weights_are_quantized: bool,
    is_ensemble: bool = False,
    device: str = "cpu",
) -> DtypeChoice:
    """Choose the weight format.

    Args:
        requested: The option ``dtype``; anything but ``auto`` is taken at its word.
        cpu: From :func:`forerun.core.env.cpu_info`.
        weights_are_quantized: Whether the model file holds 4- to 8-bit weights.
        is_ensemble: Whether the laws of several models are averaged.
        device: ``cpu``, or a CUDA device.

    Returns:
        The choice and why it was made.

    Raises:
        ConfigError: int8 was asked for on a CUDA device: its kernels are for CPUs. Or a format of single models was
            asked for, for an ensemble.
    """
    if requested == "int8" and device != "cpu":
        raise ConfigError(
            f'dtype="int8": the int8 kernels run on a CPU, not on {device}; choose "bfloat16", "float32" or "auto"'
        )
    if is_ensemble and requested in {"float8", "int4"}:
        raise ConfigError(
            f'dtype="{requested}": is for single models, and the members of an ensemble run together in float; choose '
            '"float32", "bfloat16" or "auto"'
        )
    if requested != "auto":
        return DtypeChoice(dtype=requested, reason="asked for")
    if device != "cpu":
        return DtypeChoice(dtype="bfloat16", reason=f"{device} computes bfloat16 at full speed")
    if weights_are_quantized and cpu.has_int8_dot:
        return DtypeChoice(
            dtype="int8",
            reason="the file's weights are quantised and this CPU adds int8 products exactly (VNNI or AMX)",
        )
    if weights_are_quantized:
        return DtypeChoice(
            dtype="float32",
            reason="the file's weights are quantised, but without VNNI or AMX this CPU's int8 sums can saturate",
        )
    if is_ensemble:
        return DtypeChoice(dtype="float32", reason="the members of an ensemble are averaged as they were measured")
    if cpu.has_bfloat16:
        return DtypeChoice(dtype="bfloat16", reason="this CPU multiplies bfloat16 in hardware")
    return DtypeChoice(dtype="float32", reason="this CPU has no bfloat16 products in hardware")
