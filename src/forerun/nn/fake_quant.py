"""Train with the rounding that int8 rows will bring, so that a draft keeps its aim when it runs quantised."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def fake_quantize_rows(x: Tensor) -> Tensor:
    """Round each row to 8 bits with its own symmetric scale; gradients pass as if nothing had happened.

    Args:
        x: ``[..., features]``.

    Returns:
        Like ``x``; what :mod:`forerun.nn.row_kernels` feeds to a matrix product with one level.
    """
    with torch.no_grad():
        scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127.0
        delta = (x / scale).round() * scale - x
    return x + delta


class FakeQuantLinear(nn.Linear):
    """A linear layer whose input rows are rounded to 8 bits."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to the rounded rows."""
        return linear(fake_quantize_rows(input), self.weight, self.bias)


def fake_quantize_linears(module: nn.Module) -> None:
    """Make every linear layer below ``module`` round its input, in place; parameters stay the same objects."""
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = FakeQuantLinear
