"""Arithmetic in a narrow format over weights that stay wide."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def lowered(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let a model compute in a narrow format for a while.

    Its parameters are seen as copies in ``dtype``; the gradient goes through the copy, so it reaches the parameters in
    their own format. What the model returns is float32 again. The backward pass belongs into the context, for
    checkpointed layers read the parameters anew.

    Args:
        model: With floating-point parameters.
        dtype: Such as bfloat16.

    Effects:
        Replaces the model's parameters by tensors, and puts them back.
    """
    copies: dict[nn.Parameter, Tensor] = {}
    places: list[tuple[dict[str, Any], str, nn.Parameter]] = []
    hook = model.register_forward_hook(_widen)
    try:
        for module in model.modules():
            owned: dict[str, Any] = module._parameters
            for name, parameter in list(owned.items()):
                if parameter is None:
                    continue
                if parameter not in copies:  # tied weights stay one
                    copies[parameter] = parameter.to(dtype)
                places.append((owned, name, parameter))
                owned[name] = copies[parameter]
        yield
    finally:
        hook.remove()
        for owned, name, parameter in places:
            owned[name] = parameter


def _widen(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.float()
