"""The optimisers of the training loop: AdamW, and Muon for the matrices inside the layers."""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import torch
from torch import nn
from torch.optim import Optimizer

OptimizerName = Literal["adamw", "muon"]

STATE_KEYS: Final = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""What the optimisers keep of a parameter, as a checkpoint names it."""

_OUTER: Final = frozenset({"embed_tokens", "lm_head"})


def build_optimizers(
    named: Iterable[tuple[str, nn.Parameter]], *, name: OptimizerName, learning_rate: float, weight_decay: float
) -> list[Optimizer]:
    """Return the optimisers that share the parameters of a model.

    Args:
        named: The parameters with their names.
        name: ``adamw``: AdamW (0.9, 0.95) for all. ``muon``: Muon for matrices but embedding and head, which keep
            AdamW as the vectors do. Muon's steps are scaled to the root mean square of AdamW's, so that one learning
            rate and one weight decay serve both.
        learning_rate: Of every group.
        weight_decay: Decoupled, on matrices only.

    Reference:
        Jordan et al. 2024 (kellerjordan.github.io/posts/muon); Liu et al. 2025 (arXiv 2502.16982) for the scale.
    """
    matrices: list[nn.Parameter] = []
    hidden: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter_name, parameter in named:
        if parameter.ndim <= 1:
            vectors.append(parameter)
        elif name == "muon" and parameter.ndim == 2 and _OUTER.isdisjoint(parameter_name.split(".")):
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    optimizers: list[Optimizer] = [
        torch.optim.AdamW(
            [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
    ]
    if hidden:
        optimizers.append(
            torch.optim.Muon(hidden, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def optimizer_of(parameter: nn.Parameter, optimizers: Sequence[Optimizer]) -> Optimizer:
    """Return the optimiser that a parameter belongs to."""
    return next(
        optimizer
        for optimizer in optimizers
        if any(parameter is own for group in optimizer.param_groups for own in group["params"])
    )
