"""Forerun: exact LLM decoding that prepares for the outcome of the verification still running.

    >>> from forerun import LLM, SamplingParams
    >>> with LLM() as llm:  # doctest: +SKIP
    ...     print(llm.generate(["The sea is"], SamplingParams(max_tokens=32))[0].text)

Names are imported on first use (PEP 562): ``import forerun`` loads neither torch nor a model.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forerun.core.errors import ForerunError
    from forerun.engine.api import LLM
    from forerun.engine.config import SpeculativeConfig
    from forerun.engine.constraint import Constraint
    from forerun.engine.outputs import Completion, StreamChunk
    from forerun.engine.sampling import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Completion",
    "Constraint",
    "ForerunError",
    "SamplingParams",
    "SpeculativeConfig",
    "StreamChunk",
    "__version__",
]

_HOMES = {
    "Completion": "forerun.engine.outputs",
    "Constraint": "forerun.engine.constraint",
    "ForerunError": "forerun.core.errors",
    "LLM": "forerun.engine.api",
    "SamplingParams": "forerun.engine.sampling",
    "SpeculativeConfig": "forerun.engine.config",
    "StreamChunk": "forerun.engine.outputs",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home module on first use."""
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(
            f"module 'forerun' has no attribute {name!r}; its public names: {', '.join(__all__)}"
        ) from None
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
