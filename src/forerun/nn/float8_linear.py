r"""Matrix products with weights and rows in 8-bit floats (e4m3): one scale for each output, one for each row.

.. math:: y_{mn} = s_m t_n \sum_k \hat x_{mk} \hat w_{nk}, \qquad s_m = \max_k |x_{mk}| / 448

The hats are e4m3, whose largest number is 448 and whose rounding is at most one part in 16 of a normal number. Products
of two are exact in float32, so a result differs between devices only by the order of a sum. A row's scale depends on
that row alone: what a token gets does not depend on its neighbours.

GPUs from compute capability 8.9 on multiply e4m3 as it is, which reads half of what bfloat16 does. Elsewhere the
weights are widened in each product: they take half of the memory, and more time.

Reference:
    The format is that of Micikevicius et al. 2022 (arXiv 2209.05433).
"""

from typing import Final, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn.functional import linear

Float8Kernel = Literal["scaled", "widened"]
"""Products of 8-bit floats as they are (``torch._scaled_mm``), or of the same numbers in the type of the rows."""

FLOAT8_MULTIPLE: Final = 16
"""Inputs and outputs of a product of 8-bit floats are multiples of it."""
FIRST_WITH_FLOAT8: Final = (8, 9)
"""Compute capability from which on GPUs multiply 8-bit floats."""
_LARGEST: Final = 448.0
_TINY: Final = 1e-12


def round_to_float8(rows: Float[Tensor, "rows columns"]) -> tuple[Tensor, Float32[Tensor, "rows 1"]]:
    """Round each row to e4m3 with a scale of its own.

    Args:
        rows: Finite numbers.

    Returns:
        e4m3 ``[rows, columns]`` and the scales; ``rows ~ levels * scales``.
    """
    wide = rows.float()
    scales = wide.abs().amax(dim=1, keepdim=True).clamp(min=_TINY) / _LARGEST
    return (wide / scales).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn), scales


class Float8Linear(nn.Module):
    """A linear map with a weight in e4m3; rows are rounded to e4m3 on their way in.

    Args:
        weight: ``[out, in]``, on its device.
        kernel: How products are computed; ``None`` chooses by the device.
    """

    bias: nn.Parameter | None

    def __init__(self, weight: Float[Tensor, "out in"], *, kernel: Float8Kernel | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.kernel: Float8Kernel = kernel or _kernel_for(weight.device)
        levels, scales = round_to_float8(weight)
        self.register_buffer("levels", levels)
        self.register_buffer("scales", scales.t().contiguous())
        self.register_parameter("bias", None)

    def dequantized(self) -> Float32[Tensor, "out in"]:
        """Return the weight that the levels stand for."""
        return self.get_buffer("levels").float() * self.get_buffer("scales").t()

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Multiply rows of any leading shape."""
        levels, scales = self.get_buffer("levels"), self.get_buffer("scales")
        rows, row_scales = round_to_float8(x.reshape(-1, self.in_features))
        if self.kernel == "scaled":
            out = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage] (there is no other)
                rows, levels.t(), scale_a=row_scales, scale_b=scales, out_dtype=torch.bfloat16
            ).to(x.dtype)
        else:
            out = (linear(rows.to(x.dtype), levels.to(x.dtype)).float() * row_scales * scales).to(x.dtype)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)


def _kernel_for(device: torch.device) -> Float8Kernel:
    is_capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_WITH_FLOAT8
    return "scaled" if is_capable else "widened"
