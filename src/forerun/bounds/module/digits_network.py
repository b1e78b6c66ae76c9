"""A small convolutional network for 8 x 8 pictures from 0 to 16: the example of a module to certify.

``forerun certify --data digits --input-shape 1 8 8 --module forerun.bounds.module.digits_network:build``. Its start is
PyTorch's, so that the seed which is set before each call decides it; nothing in it comes from data.
"""

from jaxtyping import Float
from torch import Tensor, nn


class DigitsNetwork(nn.Module):
    """Sixteen filters, averages over 2 x 2, a hidden layer, ten scores."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(144, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )

    def forward(self, pictures: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 10"]:
        """Return the scores."""
        return self.layers(pictures / 16)


def build() -> nn.Module:
    """Return the network at a start that PyTorch's generator decides."""
    return DigitsNetwork()
