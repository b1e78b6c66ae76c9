"""Effective dimensionality of a small network trained on scikit-learn's digits: a demonstration with an exact check."""

from dataclasses import asdict
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from forerun.bounds.curvature import hessian_product, sample_spectrum
from forerun.core.errors import ConfigError
from forerun.data.labelled import load_digits
from forerun.training.loop import LoopConfig, TrainingLoop

_MOST_EXACT: Final = 5000
_FEATURES, _CLASSES, _SEED = 64, 10, 0


class _TanhNetwork(nn.Module):
    """One smooth hidden layer in float64, all parameters in one vector: a Hessian exists everywhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shapes = [(width, _FEATURES), (width,), (_CLASSES, width), (_CLASSES,)]
        source = torch.Generator().manual_seed(_SEED)
        parts = [
            torch.randn(shape, generator=source, dtype=torch.float64).flatten() / shape[-1] ** 0.5
            for shape in self.shapes
        ]
        self.values = nn.Parameter(torch.cat(parts))

    def scores(self, inputs: Tensor, values: Tensor) -> Tensor:
        """Return scores [n, classes] with given parameters."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        first, bias, last, last_bias = (
            part.view(shape) for part, shape in zip(values.split(sizes), self.shapes, strict=True)
        )
        return linear(torch.tanh(linear(inputs, first, bias)), last, last_bias)


def measure_digits_curvature(
    *,
    width: int,
    z: float,
    convention: Literal["mean", "sum"],
    num_probes: int = 10,
    num_steps: int = 60,
    exact: bool = False,
    num_training_steps: int = 400,
    num_samples: int | None = None,
) -> dict[str, Any]:
    """Train a network with one hidden layer of tanh units, and measure its effective dimensionality.

    Args:
        width: Hidden units.
        z: Scale.
        convention: Whether the loss is the mean or the sum over examples.
        num_probes: Random vectors.
        num_steps: Lanczos steps for each.
        exact: Also compute it from all eigenvalues.
        num_training_steps: Optimiser steps.
        num_samples: Use only the first so many digits.

    Returns:
        The estimate with its interval and circumstances, the same under the other convention, and the exact value with
        the number of negative eigenvalues, or ``None``.

    Raises:
        ConfigError: A number is out of range, or the model too large for the exact value.
        MissingDependencyError: scikit-learn is not installed.
    """
    if width < 1:
        raise ConfigError(f"width={width}: must be at least 1")
    data = load_digits()
    inputs, labels = torch.from_numpy(data.inputs[:num_samples] / 16), torch.from_numpy(data.labels[:num_samples])
    model = _TanhNetwork(width)
    num_parameters = len(model.values)
    if exact and num_parameters > _MOST_EXACT:
        raise ConfigError(f"width={width}: {num_parameters} parameters; the exact value is for up to {_MOST_EXACT}")
    loop = LoopConfig(num_steps=num_training_steps, learning_rate=0.02, weight_decay=0.0)
    TrainingLoop(
        model,
        loop,
        batch_at=lambda step: step,
        loss=lambda step: cross_entropy(model.scores(inputs, model.values), labels),
    ).run()
    point = model.values.detach()
    product = hessian_product(lambda values: cross_entropy(model.scores(inputs, values), labels), point)
    scales = {"mean": z, "sum": z / len(labels)}
    # N_eff of n H at z is that of H at z / n: both conventions need only the mean loss.
    spectrum = sample_spectrum(product, num_parameters, num_probes=num_probes, num_steps=num_steps)
    estimates = {name: spectrum.effective_dimension(scale) for name, scale in scales.items()}
    other = "sum" if convention == "mean" else "mean"
    found: dict[str, Any] = {
        **asdict(estimates[convention]), "z": z, "convention": convention, "num_samples": len(labels), "exact": None,
        "num_negative": None, "other_convention": {**asdict(estimates[other]), "z": z, "convention": other},
    }  # fmt: skip
    if exact:
        rows = torch.stack([product(row) for row in torch.eye(num_parameters, dtype=torch.float64)])
        eigenvalues = torch.linalg.eigvalsh((rows + rows.T) / 2)
        positive = eigenvalues.clamp(min=0)
        found["exact"] = float((positive / (positive + scales[convention])).sum())
        found["num_negative"] = int((eigenvalues < 0).sum())
    return found
