"""Matrix products with int8 weights and int8 rows, through oneDNN's VNNI / AMX kernels.

One scale per output channel and one per row; the sums are integers, so the result of a row does not depend on how many
rows the call has. On the machines we measured such a product costs the same for 1 and for 8 rows: a CPU core then
behaves like a memory-bound GPU, which is what speculation needs.
"""

import numpy as np
import torch
from torch import Tensor

from forerun.nn.row_kernels import ZERO_POINT


def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix to int8 with one symmetric scale per output channel.

    Args:
        weight: float32 ``[out, in]``.

    Returns:
        int8 ``[out, in]`` in [-127, 127] and float32 scales ``[out]``; ``weight ~ q * scale[:, None]``.
    """
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-12).astype(np.float32) / np.float32(127.0)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


class Int8Linear:
    """A linear map whose weight was packed once for oneDNN.

    Args:
        weight: int8 ``[out, in]``.
        scale: float32 ``[out]``.
    """

    def __init__(self, weight: np.ndarray, scale: np.ndarray) -> None:
        self.out_features, self.in_features = weight.shape
        self._scale = torch.from_numpy(np.ascontiguousarray(scale))
        self._zero_points = torch.zeros(self.out_features, dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(np.ascontiguousarray(weight)), None)

    @classmethod
    def from_float(cls, *weights: np.ndarray) -> "Int8Linear":
        """Quantise float matrices and stack them along their outputs."""
        parts = [quantize_weight(weight) for weight in weights]
        return cls(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))

    def __call__(self, rows_u8: Tensor) -> Tensor:
        """Return float32 ``[M, out]``; multiply row m by its own scale to finish the product.

        Args:
            rows_u8: uint8 ``[M, in]`` with zero point 128.
        """
        return torch.ops.onednn.qlinear_pointwise(
            rows_u8, 1.0, ZERO_POINT, self._packed, self._scale, self._zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )
