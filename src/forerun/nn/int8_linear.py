"""Matrix products with int8 weights and 8- or 15-bit rows.

One scale per output channel and one per row; the sums are integers, so the result of a row does not depend on how many
rows the call has. On the machines we measured such a product costs nearly the same for 1 and for 8 rows: a CPU core
then behaves like a memory-bound GPU, which is what speculation needs.
"""

import numpy as np
import torch
from numba import njit

from forerun.nn import vnni
from forerun.nn.row_kernels import LOW_LEVELS, ZERO_POINT


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"nnan"})
def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix to int8 with one symmetric scale per output channel.

    Args:
        weight: float32 ``[out, in]``.

    Returns:
        int8 ``[out, in]`` in [-127, 127] and float32 scales ``[out]``; ``weight ~ q * scale[:, None]``.
    """
    quantized, scales = np.empty(weight.shape, np.int8), np.empty(weight.shape[0], np.float32)
    for n in range(weight.shape[0]):
        peak = np.float32(1e-12)
        for k in range(weight.shape[1]):
            peak = max(peak, abs(weight[n, k]))
        scale = peak / np.float32(127.0)
        for k in range(weight.shape[1]):
            quantized[n, k] = np.int8(np.rint(weight[n, k] / scale))
        scales[n] = scale
    return quantized, scales


class Int8Linear:
    """A linear map with an int8 weight, packed once for the kernel that multiplies it.

    Our VNNI kernel where the CPU has the instructions, else oneDNN's (AMX, AVX2); both add integers, so they agree to
    the rounding of the last float32 product.

    Args:
        weight: int8 ``[out, in]``.
        scale: float32 ``[out]``.
        kernel: ``"vnni"`` or ``"onednn"``; ``None`` chooses.

    Products use as many threads as PyTorch is set to at the time.
    """

    def __init__(self, weight: np.ndarray, scale: np.ndarray, *, kernel: str | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.kernel = kernel or ("vnni" if vnni.is_supported() and self.in_features % 4 == 0 else "onednn")
        self._scale = np.ascontiguousarray(scale, np.float32)
        if self.kernel == "vnni":
            self._offset = (ZERO_POINT * weight.sum(axis=1, dtype=np.int32)).astype(np.int32)
            self._packed = vnni.pack_weight(weight)
        else:
            self._zero_points = torch.zeros(self.out_features, dtype=torch.int64)
            self._prepacked = torch.ops.onednn.qlinear_prepack(torch.from_numpy(np.ascontiguousarray(weight)), None)

    @classmethod
    def from_float(cls, *weights: np.ndarray, kernel: str | None = None) -> "Int8Linear":
        """Quantise float matrices and stack them along their outputs."""
        parts = [quantize_weight(np.ascontiguousarray(weight, np.float32)) for weight in weights]
        weight, scale = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
        return cls(weight, scale, kernel=kernel)

    def __call__(self, rows: np.ndarray, row_scale: np.ndarray) -> np.ndarray:
        """Multiply quantised rows by the weight.

        Args:
            rows: uint8 ``[levels M, in]`` with zero point 128; with two levels, M rows and then M remainders.
            row_scale: float32 ``[M]``.

        Returns:
            float32 ``[M, out]``.
        """
        if self.kernel == "vnni":
            out = np.empty((len(row_scale), self.out_features), np.float32)
            operands = (self._packed, self._scale, self._offset, rows, row_scale, 1.0 / LOW_LEVELS, out)
            num_threads = torch.get_num_threads()
            if num_threads > 1:
                vnni.multiply_in_threads(*operands, num_threads)
            else:
                vnni.multiply(*operands)
            return out
        product = torch.ops.onednn.qlinear_pointwise(
            torch.from_numpy(rows), 1.0, ZERO_POINT, self._prepacked, torch.from_numpy(self._scale), self._zero_points,
            None, 1.0, 0, torch.float32, "none", [], "",
        ).numpy()  # fmt: skip
        out = product[: len(row_scale)] * row_scale[:, None]
        if len(rows) > len(row_scale):
            out += product[len(row_scale) :] * (row_scale[:, None] / np.float32(LOW_LEVELS))
        return out
