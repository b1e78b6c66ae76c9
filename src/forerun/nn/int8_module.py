"""The int8 product as a module, among others that compute in floats."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.nn import row_kernels as kernels
from forerun.nn.int8_linear import Int8Linear


class Int8Module(nn.Module):
    """A linear map with an int8 weight, on a CPU, without gradients; rows are rounded to 8 bits on their way in.

    Args:
        weight: float32 ``[out, in]``.
    """

    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._product = Int8Linear.from_float(weight.numpy())
        self.register_parameter("bias", None)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Multiply rows of any leading shape."""
        rows = x.reshape(-1, self.in_features).contiguous().numpy()
        narrow, scale = np.empty(rows.shape, np.uint8), np.empty(len(rows), np.float32)
        kernels.quantize_rows(rows, narrow, scale)
        y = torch.from_numpy(self._product(narrow, scale)).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias
