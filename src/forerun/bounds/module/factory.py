"""A module by the name of what makes it: started from a seed, the same each time, its source on record."""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from forerun.core.errors import ConfigError
from forerun.nn.subspace_module import trained_parameters

FOREIGN_ERRORS: Final = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""What code that is not ours may raise on purpose or by mistake."""

Factory = Callable[[], nn.Module]


def factory_name(factory: str | Factory) -> str:
    """Return ``PACKAGE.MODULE:NAME`` of a factory, by which another process can find it.

    Raises:
        ConfigError: It is part of the main program or of a function, or the name is not of this form.
    """
    if isinstance(factory, str):
        name = factory
    else:
        module, qualified = getattr(factory, "__module__", ""), getattr(factory, "__qualname__", "")
        name = f"{module}:{qualified}"
    module, _, path = name.partition(":")
    if not (module and module != "__main__" and path and all(part.isidentifier() for part in path.split("."))):
        raise ConfigError(
            f"factory={name!r}: another process must be able to import it; give PACKAGE.MODULE:FACTORY, a function or "
            "class at the top of a module"
        )
    return name


def load_factory(name: str) -> Factory:
    """Import a factory; runs the code of its module.

    Args:
        name: ``PACKAGE.MODULE:FACTORY``.

    Raises:
        ConfigError: There is none of this name, or importing it fails.
    """
    module, _, path = factory_name(name).partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except FOREIGN_ERRORS as error:
        raise ConfigError(
            f"factory={name!r}: cannot be imported ({type(error).__name__}: {error}); give PACKAGE.MODULE:FACTORY, to "
            "be found from this folder or installed"
        ) from error
    if not callable(found):
        raise ConfigError(f"factory={name!r}: is a {type(found).__name__}; give a function or class without arguments")
    return cast("Factory", found)


def build_module(factory: Factory, seed: int, *, base: Path | None = None) -> nn.Module:
    """Return a module at its start, in evaluation mode.

    Args:
        factory: Called without arguments, PyTorch's generator set to the seed and put back afterwards.
        seed: Of the start.
        base: A safetensors file; its tensors replace parameters and buffers of the same names.

    Raises:
        ConfigError: The factory fails, makes no module, or the base does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = factory()
        except FOREIGN_ERRORS as error:
            raise ConfigError(
                f"factory {_name_of(factory)}: fails ({type(error).__name__}: {error}); it must work without arguments"
            ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"factory {_name_of(factory)}: made a {type(module).__name__}; must make a torch.nn.Module")
    _check_parameters(module)
    tensors = {} if base is None else _read_base(base)
    _put_tensors(module, tensors, source=str(base))
    _check_statistics(module, covered=tensors)
    return module.cpu().eval()


def start_sha256(module: nn.Module) -> str:
    """Return the digest of a module's parameters and buffers: names, shapes, values, and what is trained."""
    digest = hashlib.sha256(json.dumps(list(trained_parameters(module))).encode())
    for name, tensor in _state(module).items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def source_digests(factory: Factory, module: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of the files that define the factory and the classes it put together, PyTorch's left out.

    Raises:
        ConfigError: One of them has no source file.
    """
    names = {getattr(factory, "__module__", "")} | {type(part).__module__ for part in module.modules()}
    digests: dict[str, str] = {}
    for name in sorted(name for name in names if name.partition(".")[0] != "torch"):
        try:
            path = inspect.getsourcefile(sys.modules[name])
        except (KeyError, TypeError):
            path = None
        if path is None or not Path(path).is_file():
            raise ConfigError(f"module {name!r}: has no source file; define factory and classes in files")
        digests[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return digests


def _name_of(factory: Factory) -> str:
    return getattr(factory, "__qualname__", type(factory).__name__)


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and all buffers by name, those left out of checkpoints as well."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _check_parameters(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ConfigError(f"parameter {name!r}: gets its shape from the data; give the layer its sizes")
        if parameter.requires_grad and not parameter.dtype.is_floating_point:
            raise ConfigError(f"parameter {name!r}: is {parameter.dtype}; must be of real floating-point numbers")
    for name, tensor in _state(module).items():
        if tensor.dtype.is_floating_point and not tensor.isfinite().all():
            raise ConfigError(f"tensor {name!r}: starts with NaN or infinity; give it a finite start")


def _check_statistics(module: nn.Module, *, covered: Iterable[str]) -> None:
    """Refuse layers that collect statistics of the data, unless an independent base brought them."""
    names = set(covered)
    for name, buffer in module.named_buffers():
        if name.rpartition(".")[2] in {"running_mean", "running_var"} and name not in names:
            kind = type(module.get_submodule(name.rpartition(".")[0])).__name__
            raise ConfigError(
                f"buffer {name!r} of a {kind}, {tuple(buffer.shape)}: running statistics of the data would stay "
                "outside the code; take a normalisation without them, such as GroupNorm, or bring them with a base "
                "made without these data (--base FILE --base-is-independent)"
            )


def _read_base(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read as safetensors ({error}); get a fresh copy") from error


def _put_tensors(module: nn.Module, tensors: dict[str, Tensor], *, source: str) -> None:
    state = _state(module)
    for name, tensor in tensors.items():
        if name not in state or state[name].shape != tensor.shape:
            has = f"of shape {tuple(state[name].shape)}" if name in state else "no such tensor"
            raise ConfigError(
                f"{source}: {name!r} has shape {tuple(tensor.shape)}, the module has {has}; save the state of a module "
                "with these names, without what is new"
            )
        with torch.no_grad():
            state[name].copy_(tensor)
