"""Weights into the PyTorch decoder, one parameter at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.layout import parameter_shapes, projection_shapes


def fill_decoder(
    config: DecoderConfig,
    tensor: Callable[[str], np.ndarray],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    build_layer: Callable[[Tensor], nn.Module] | None = None,
) -> Decoder:
    """Build a decoder and fill it one parameter at a time, so that no second copy is held.

    Args:
        config: Its shape.
        tensor: Gives a weight by its name in ``Decoder.state_dict()`` as float32; not called for a tied head.
        dtype: Type of the parameters.
        device: Where they go.
        build_layer: Makes each projection of the layers from its weight ``[out, in]``, float32 on the device;
            ``None``: plain linear maps.

    Returns:
        The decoder in evaluation mode.
    """
    with _NoInitialisation():
        decoder = Decoder(config)
    projections = {} if build_layer is None else projection_shapes(config)
    for name in parameter_shapes(config):
        module_name, _, parameter_name = name.rpartition(".")
        values = torch.from_numpy(tensor(name)).to(device=device)
        if build_layer is not None and name in projections:
            parent, _, own_name = module_name.rpartition(".")
            setattr(decoder.get_submodule(parent), own_name, build_layer(values))
        else:
            setattr(decoder.get_submodule(module_name), parameter_name, nn.Parameter(values.to(dtype)))
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
