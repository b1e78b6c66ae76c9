r"""Matrix products with 4-bit weights in groups of inputs, and rows as they are.

Each group of neighbouring inputs of an output has a scale and an offset, both bfloat16:

.. math:: \hat w = (l - 8) \, s + o, \qquad l \in \{0, \dots, 15\}

so that a weight is off by at most half a scale, but for the rounding of scale and offset. A weight takes 4 bits and its
share of 32 bits a group.

PyTorch has kernels of this very form for GPUs from compute capability 8.0 on, and for CPUs; rows and results are
bfloat16. (The one for CPUs takes float32 too, and a hundred times as long.) As their slow twin, the weights are widened
in each product, and rows are what they are.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn.functional import linear

Int4Kernel = Literal["cuda", "cpu", "widened"]

GROUP_SIZES: Final = (128, 64, 32)
"""Inputs of a group; the first that divides the inputs is taken."""
INT4_OUTPUT_MULTIPLE: Final = 16
"""Outputs of a 4-bit weight are a multiple of it."""
FIRST_WITH_INT4: Final = (8, 0)
"""Compute capability from which on GPUs have the kernel."""
_NUM_LEVELS: Final = 16
_MIDDLE: Final = 8
_INNER_TILES: Final = (8, 4, 2)
"""Tiles of 16 inputs that the kernel for GPUs takes at a time."""
_TINY: Final = 1e-8


def group_size_for(in_features: int) -> int | None:
    """Return the size of groups for a number of inputs; ``None`` where none divides it."""
    return next((size for size in GROUP_SIZES if in_features % size == 0), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Int4Weight:
    """A weight rounded to 4 bits.

    Attributes:
        levels: uint8 ``[out, in]``, 0 to 15.
        scales: float32 ``[out, groups]``, numbers that bfloat16 has.
        offsets: As ``scales``.
    """

    levels: UInt8[Tensor, "out in"]
    scales: Float32[Tensor, "out groups"]
    offsets: Float32[Tensor, "out groups"]

    def dequantized(self) -> Float32[Tensor, "out in"]:
        """Return the weight that the levels stand for."""
        num_outputs, num_inputs = self.levels.shape
        grouped = self.levels.view(num_outputs, self.scales.shape[1], -1).float() - _MIDDLE
        wide = grouped * self.scales.unsqueeze(2) + self.offsets.unsqueeze(2)
        return wide.view(num_outputs, num_inputs)


def round_to_int4(weight: Float[Tensor, "out in"], *, group_size: int) -> Int4Weight:
    """Round a weight to 4 bits, each group between its least and its largest number.

    Args:
        weight: Finite numbers.
        group_size: Inputs of a group; divides their number.
    """
    num_outputs = weight.shape[0]
    groups = weight.float().view(num_outputs, -1, group_size)
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    scales = _rounded(((high - low) / (_NUM_LEVELS - 1)).clamp(min=_TINY))
    offsets = _rounded(low + scales * _MIDDLE)
    levels = ((groups - offsets.unsqueeze(2)) / scales.unsqueeze(2)).round() + _MIDDLE
    levels = levels.clamp(0, _NUM_LEVELS - 1).to(torch.uint8)
    return Int4Weight(levels=levels.view(num_outputs, -1), scales=scales, offsets=offsets)


class Int4Linear(nn.Module):
    """A linear map with a weight of 4 bits.

    Args:
        weight: ``[out, in]``, on its device.
        kernel: How products are computed; ``None`` chooses by the device.
    """

    bias: nn.Parameter | None

    def __init__(self, weight: Float[Tensor, "out in"], *, kernel: Int4Kernel | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        group_size = group_size_for(self.in_features)
        assert group_size is not None, f"{self.in_features} inputs have no groups; the caller checks"
        self.group_size = group_size
        self.kernel: Int4Kernel = kernel or ("cuda" if weight.device.type == "cuda" else "cpu")
        rounded = round_to_int4(weight, group_size=group_size)
        # [groups, out, 2], the order in which the kernels read them.
        pairs = torch.stack((rounded.scales, rounded.offsets), dim=2).transpose(0, 1).contiguous()
        self.register_buffer("scales", pairs.to(torch.bfloat16))
        self.register_buffer("packed", self._pack(rounded.levels))
        self.register_parameter("bias", None)

    def dequantized(self) -> Float32[Tensor, "out in"]:
        """Return the weight that the levels stand for; of the widened kernel, whose levels can be read."""
        assert self.kernel == "widened", "the order of packed levels is the kernel's own"
        pairs, packed = self.get_buffer("scales").float(), self.get_buffer("packed")
        levels = torch.stack((packed >> 4, packed & 15), dim=2).view(self.out_features, self.in_features)
        return Int4Weight(levels=levels, scales=pairs[:, :, 0].t(), offsets=pairs[:, :, 1].t()).dequantized()

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Multiply rows of any leading shape."""
        rows = x.reshape(-1, self.in_features)
        packed, pairs = self.get_buffer("packed"), self.get_buffer("scales")
        if self.kernel == "widened":
            out = linear(rows, self.dequantized().to(rows.dtype))
        else:
            operators = torch.ops.aten
            multiply = operators._weight_int4pack_mm
            if self.kernel == "cpu":
                multiply = operators._weight_int4pack_mm_for_cpu
            out = multiply(rows.to(torch.bfloat16), packed, self.group_size, pairs).to(x.dtype)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def _pack(self, levels: UInt8[Tensor, "out in"]) -> Tensor:
        """Return the levels as the kernel reads them; for the widened one, two a byte, the first in the high half."""
        if self.kernel == "cpu":
            return torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1)
        pairs = (levels[:, ::2] << 4) | levels[:, 1::2]
        if self.kernel == "widened":
            return pairs
        num_tiles = next(count for count in _INNER_TILES if self.in_features % (16 * count) == 0)
        return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), num_tiles)


def _rounded(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).float()
