"""Two small networks for 8 x 8 pictures from 0 to 16: the examples of modules to certify.

``forerun certify --data digits --input-shape 1 8 8 --module forerun.bounds.module.digits_network:build``. Their starts
are drawn from PyTorch's generator, so that the seed set before each call decides them; nothing comes from data.
"""

from collections import OrderedDict
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.bounds.verifier import bank_filters

_LARGEST: Final = 16
_NUM_ANGLES: Final = 8
_KERNEL: Final = (3, 3)


class Scaled(nn.Module):
    """Brings pictures to numbers from 0 to 1."""

    def forward(self, pictures: Float[Tensor, "*batch 1 8 8"]) -> Float[Tensor, "*batch 1 8 8"]:
        """Return the scaled pictures."""
        return pictures / _LARGEST


def build() -> nn.Module:
    """Return a perceptron with 40 hidden units, all of it trained."""
    return nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))


def build_with_filters() -> nn.Module:
    """Return a network behind filters that stay as they are: edges in eight directions and a blur, over 2 x 2."""
    filters = nn.Conv2d(1, _NUM_ANGLES + 1, _KERNEL, bias=False).requires_grad_(requires_grad=False)
    with torch.no_grad():
        filters.weight.copy_(torch.from_numpy(bank_filters(_NUM_ANGLES, _KERNEL)[:, None]))
    hidden, last = nn.Linear(81, 24), nn.Linear(24, 10)
    for layer in (hidden, last):
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(
        OrderedDict(
            scaled=Scaled(), filters=filters, edges=nn.ReLU(), pooled=nn.AvgPool2d(2), flat=nn.Flatten(),
            hidden=hidden, active=nn.ReLU(), last=last,
        )
    )  # fmt: skip
