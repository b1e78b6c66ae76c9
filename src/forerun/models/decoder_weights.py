"""Weights into the PyTorch decoder, one parameter at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.layout import parameter_shapes


def fill_decoder(
    config: DecoderConfig,
    tensor: Callable[[str], np.ndarray],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Decoder:
    """Build a decoder and fill it one parameter at a time, so that no second copy is held.

    Args:
        config: Its shape.
        tensor: Gives a weight by its name in ``Decoder.state_dict()`` as float32; not called for a tied head.
        dtype: Type of the parameters.
        device: Where they go.

    Returns:
        The decoder in evaluation mode.
    """
    with _NoInitialisation():
        decoder = Decoder(config)
    for name in parameter_shapes(config):
        module_name, _, parameter_name = name.rpartition(".")
        values = torch.from_numpy(tensor(name)).to(device=device, dtype=dtype)
        setattr(decoder.get_submodule(module_name), parameter_name, nn.Parameter(values))
    decoder.refresh_derived()
    return decoder.to(device=device).eval()


class _NoInitialisation(TorchFunctionMode):
    """Leaves new parameters as allocated: drawing numbers that are overwritten at once costs seconds.

    (The meta device would do too, but initialising on it imports the compiler, which costs as much.)
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
