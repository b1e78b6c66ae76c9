"""Optional packages: import one when it is needed, or say how to install it."""

from importlib import import_module
from types import ModuleType

from forerun.core.errors import MissingDependencyError


def import_optional(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a package that only one of Forerun's extras brings.

    Args:
        name: Module to import, such as ``matplotlib.pyplot``.
        extra: The extra of pyproject.toml that lists its package.
        purpose: What needs it, as the subject of a sentence: ``"the decoding benchmark"``.

    Returns:
        The module.

    Raises:
        MissingDependencyError: The package is not installed. An import that fails *inside* the package is not hidden.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingDependencyError(
            f"{purpose} needs the package {package}, which is not installed; run: pip install 'forerun[{extra}]'"
        ) from None
