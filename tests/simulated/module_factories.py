"""Modules to certify, and modules that can't be: factories that another process imports by name."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

_CALLS = itertools.count()
NUM_FEATURES, NUM_CLASSES = 8, 3


class Layers(nn.Module):
    """Two layers, and what may be between and behind them."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.between = nn.Linear(NUM_FEATURES, 6), between or nn.ReLU()
        self.last = nn.Linear(6, NUM_CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.between(self.first(inputs / 4)))


def plain() -> nn.Module:
    return Layers()


def with_dropout() -> nn.Module:
    """Is off in evaluation mode, as it should be."""
    return Layers(nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))


def normalised() -> nn.Module:
    return Layers(nn.BatchNorm1d(6))


class Coupled(Layers):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs - inputs.mean(dim=0))


class Noisy(Layers):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(dropout(inputs, training=True))


class Hidden(Layers):
    """Keeps a layer out of the sight of ``eval()``, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.unseen = [nn.BatchNorm1d(NUM_FEATURES)]

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(self.unseen[0].double()(inputs.double()).to(inputs.dtype))


class Infinite(Layers):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) / 0


class Counting(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.get_buffer("seen").add_(len(inputs))
        return super().forward(inputs)


class TooManyScores(Layers):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).repeat(1, 2)


class Single(Layers):
    """Computes in one width only."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) @ torch.eye(NUM_CLASSES, dtype=torch.float32)


def not_seeded() -> nn.Module:
    module = Layers()
    nn.init.constant_(module.last.bias, next(_CALLS))
    return module


def not_finite() -> nn.Module:
    module = Layers()
    nn.init.constant_(module.last.bias, torch.inf)
    return module


def tiny() -> nn.Module:
    return nn.Linear(NUM_FEATURES, NUM_CLASSES).requires_grad_(requires_grad=False)


def lazy() -> nn.Module:
    return nn.LazyLinear(NUM_CLASSES)


def fails() -> nn.Module:
    raise RuntimeError("no weights here")


def no_module() -> str:
    return "module"


NOT_CALLABLE = 3
