"""Number formats of weights: how a layer is made in one, what a model and a device must have for it, what a pass reads.

The narrow formats, 8-bit floats and 4-bit integers, are for the projections of the layers. Embedding, head and norms
stay in bfloat16 on a GPU, float32 on a CPU, and so do keys, values and the residual stream.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from forerun.core.dtype_choice import DtypeName
from forerun.core.errors import ConfigError
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.decoder_weights import fill_decoder
from forerun.models.layout import bytes_per_pass, projection_shapes
from forerun.nn.float8_linear import FLOAT8_MULTIPLE, Float8Linear
from forerun.nn.int4_linear import FIRST_WITH_INT4, GROUP_SIZES, INT4_OUTPUT_MULTIPLE, Int4Linear, group_size_for

_TORCH_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NARROW: Final[dict[str, Callable[[Tensor], nn.Module]]] = {"float8": Float8Linear, "int4": Int4Linear}
_BYTES_PER_WEIGHT: Final = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "float8": 1.0, "int4": 0.5}
_SCALE_BYTES: Final = 4
"""Of a float32 scale, and of a scale and an offset in bfloat16."""


def is_narrow(dtype: DtypeName) -> bool:
    """Return whether a format is for the projections alone."""
    return dtype in _NARROW


def float_type(dtype: DtypeName, device: torch.device) -> torch.dtype:
    """Return the type of what is computed, and of the weights that a narrow format leaves alone."""
    if is_narrow(dtype):
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _TORCH_DTYPES[dtype]


def layer_builder(dtype: DtypeName) -> Callable[[Tensor], nn.Module] | None:
    """Return what makes a projection of its weight ``[out, in]``; ``None`` where it is the decoder's own."""
    return _NARROW.get(dtype)


def format_problem(config: DecoderConfig, dtype: DtypeName, *, capability: tuple[int, int] | None = None) -> str | None:
    """Return why a model can't have its weights in a format, as the rest of a sentence; ``None`` where it can.

    Args:
        config: Of the model, or of a process's share of it.
        dtype: The format.
        capability: Compute capability of the GPU; ``None`` for a CPU.
    """
    if dtype == "int4" and capability is not None and capability < FIRST_WITH_INT4:
        return f"this GPU has compute capability {capability[0]}.{capability[1]}, and the kernel needs 8.0"
    for name, (num_outputs, num_inputs) in projection_shapes(config).items():
        if dtype == "float8" and (num_outputs % FLOAT8_MULTIPLE or num_inputs % FLOAT8_MULTIPLE):
            return f"{name} is {num_outputs} x {num_inputs}, and both must be multiples of {FLOAT8_MULTIPLE}"
        if dtype == "int4" and (group_size_for(num_inputs) is None or num_outputs % INT4_OUTPUT_MULTIPLE):
            return (
                f"{name} is {num_outputs} x {num_inputs}; outputs must be a multiple of {INT4_OUTPUT_MULTIPLE}, inputs "
                f"of {GROUP_SIZES[-1]}"
            )
    return None


def check_format(config: DecoderConfig, dtype: DtypeName, device: torch.device) -> None:
    """Refuse a format that a model or a device does not allow.

    Raises:
        ConfigError: It does not.
    """
    problem = format_problem(config, dtype, capability=_capability(device))
    if problem is not None:
        raise ConfigError(f'dtype="{dtype}": {problem}; choose "bfloat16" or "float32"')


def fitting_format(config: DecoderConfig, dtype: DtypeName, device: torch.device) -> DtypeName:
    """Return a format, or a plain one where model or device does not allow it: a draft's law need only be near."""
    if format_problem(config, dtype, capability=_capability(device)) is None:
        return dtype
    return "float32" if device.type == "cpu" else "bfloat16"


def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def load_decoder(
    config: DecoderConfig, tensor: Callable[[str], np.ndarray], *, dtype: DtypeName, device: torch.device
) -> Decoder:
    """Load a decoder with its weights in a format of PyTorch's.

    Args:
        config: Shape of the model.
        tensor: Gives a weight by its name, as float32.
        dtype: Any format but int8.
        device: Where it goes.

    Raises:
        ConfigError: The model or the device does not allow the format.
    """
    check_format(config, dtype, device)
    return fill_decoder(
        config, tensor, dtype=float_type(dtype, device), device=device, build_layer=layer_builder(dtype)
    )


def bytes_per_pass_in(dtype: DtypeName, config: DecoderConfig) -> int:
    """Return the same for weights in a format: of a narrow one, with its scales, the head in bfloat16.

    Args:
        dtype: The format.
        config: Shape of the decoder, which may have its weights in it.
    """
    if not is_narrow(dtype):
        return bytes_per_pass(config, bytes_per_weight=_BYTES_PER_WEIGHT[dtype])
    total = config.vocab_size * config.hidden_size * _BYTES_PER_WEIGHT["bfloat16"]
    for num_outputs, num_inputs in projection_shapes(config).values():
        num_scales = num_outputs
        if dtype == "int4":
            num_scales *= num_inputs // (group_size_for(num_inputs) or num_inputs)
        total += num_outputs * num_inputs * _BYTES_PER_WEIGHT[dtype] + num_scales * _SCALE_BYTES
    return round(total)
