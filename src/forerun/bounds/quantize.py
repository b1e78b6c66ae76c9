"""Training for a short message: coefficients on a learned codebook, with the message's length in the loss.

The loss is the cross-entropy plus ``rate_weight`` times the message's information over n, both in nats: the two parts
of a two-part description of the labels. Gradients pass through rounding as if it were not there (straight-through);
the information of a coefficient is softened, so that it pulls towards likelier levels.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from forerun.bounds.message import num_magnitude_steps, step_to_magnitude
from forerun.nn.subspace import SubspaceMlp
from forerun.training.loop import LoopConfig, TrainingLoop


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How to look for a short message with few errors. None of it is paid for.

    Attributes:
        num_float_steps: Optimiser steps before quantisation.
        num_quantized_steps: And on the codebook.
        learning_rate: Peak, of both stages.
        rate_weight: Nats of cross-entropy that a nat of message is worth.
        num_sweeps: Sweeps of descent on the bound afterwards, at most, in each stage.
    """

    num_float_steps: int = 600
    num_quantized_steps: int = 900
    learning_rate: float = 0.05
    rate_weight: float = 3.0
    num_sweeps: int = 5


class QuantizedSubspace(nn.Module):
    """Coefficients of a subspace network, rounded to zero and +-m learned magnitudes.

    Args:
        network: The subspace; not trained.
        levels: 2 m + 1.
    """

    def __init__(self, network: SubspaceMlp, levels: int) -> None:
        super().__init__()
        self.network = network
        self.coefficients = nn.Parameter(torch.zeros(network.dim))
        self.log2_magnitudes = nn.Parameter(torch.zeros((levels - 1) // 2))

    def fit_codebook(self) -> None:
        """Place the magnitudes evenly up to the larger coefficients."""
        with torch.no_grad():
            top = float(self.coefficients.abs().quantile(0.95).clamp(min=2**-6))
            count = len(self.log2_magnitudes)
            self.log2_magnitudes.copy_(torch.log2(top * torch.arange(1, count + 1) / count))

    def magnitude_steps(self) -> list[int]:
        """Return the codebook in whole steps of the message's logarithmic scale."""
        return [min(max(round(64 + 8 * x), 0), num_magnitude_steps() - 1) for x in self.log2_magnitudes.tolist()]

    def codebook(self) -> Float[Tensor, " classes"]:
        """Return zero and the magnitudes as the decoder will have them; gradients reach the learned logarithms."""
        exact = torch.tensor([step_to_magnitude(step) for step in self.magnitude_steps()])
        soft = torch.exp2(self.log2_magnitudes)
        return torch.cat([torch.zeros(1), exact + soft - soft.detach()])

    def symbols(self) -> Int[Tensor, " dim"]:
        """Return the signed class of each coefficient: 0, or +-j for the j-th magnitude."""
        with torch.no_grad():
            distance = (self.coefficients.abs()[:, None] - self.codebook()[None, :]).abs()
            return distance.argmin(dim=1) * self.coefficients.sign().long()

    def quantized(self) -> Float[Tensor, " dim"]:
        """Return the rounded coefficients, straight-through."""
        signed = self.symbols()
        values = self.codebook()[signed.abs()] * signed.sign()
        return values + self.coefficients - self.coefficients.detach()

    def rate_nats(self) -> Tensor:
        """Return the softened information of the symbols, at their present frequencies."""
        classes = self.symbols().abs()
        book = self.codebook().detach()
        counts = torch.bincount(classes, minlength=len(book)).float() + 0.5
        nats = -torch.log(counts / counts.sum())
        nats[1:] += math.log(2)
        spread = (book.max() / len(book)).clamp(min=1e-6)
        logits = -(((self.coefficients.abs()[:, None] - book[None, :]) / spread) ** 2)
        return (torch.softmax(logits, dim=1) * nats).sum()


def search(
    network: SubspaceMlp,
    inputs: Float[Tensor, "n features"],
    labels: Int[Tensor, " n"],
    *,
    levels: int,
    config: SearchConfig,
) -> QuantizedSubspace:
    """Train one candidate.

    Args:
        network: The subspace.
        inputs: Scaled training examples.
        labels: Their classes.
        levels: Quantisation levels.
        config: How.

    Returns:
        Coefficients whose :meth:`~QuantizedSubspace.symbols` and magnitudes make the message.
    """
    model = QuantizedSubspace(network, levels)

    def float_loss(step: int) -> Tensor:
        return cross_entropy(network(inputs, model.coefficients), labels)

    def quantized_loss(step: int) -> Tensor:
        fit = cross_entropy(network(inputs, model.quantized()), labels)
        return fit + config.rate_weight * model.rate_nats() / len(labels)

    stages = ((config.num_float_steps, float_loss), (config.num_quantized_steps, quantized_loss))
    for stage, (num_steps, loss) in enumerate(stages):
        if stage:
            model.fit_codebook()
        loop = LoopConfig(num_steps=num_steps, learning_rate=config.learning_rate, weight_decay=0.0)
        TrainingLoop(model, loop, batch_at=lambda step: step, loss=loss).run()
    return model
