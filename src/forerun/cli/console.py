"""Where commands write: plain lines, errors, and JSON results."""

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forerun.core.errors import ConfigError


def write_line(text: str = "") -> None:
    """Write one line to standard output."""
    sys.stdout.write(f"{text}\n")


def write_error(message: str) -> None:
    """Write an error to standard error as one line, whatever line breaks the message has."""
    sys.stdout.flush()
    sys.stderr.write(f"forerun: error: {' '.join(message.split())}\n")


def write_json(path: Path, payload: Mapping[str, Any]) -> None:
    """Write results as JSON, whole or not at all: a reader never sees half a file.

    Args:
        path: The file; replaced if it is there. A pipe or device such as ``/dev/stdout`` is written to directly.
        payload: JSON types and :class:`~pathlib.Path`. A float that is not finite becomes ``null``, as JSON has no
            word for it.

    Raises:
        ConfigError: The file can't be written.
    """
    text = json.dumps(_finite(payload), indent=2, allow_nan=False, default=str) + "\n"
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            whole = Path(folder) / path.name
            whole.write_text(text, encoding="utf-8")
            whole.replace(path)
    except OSError as error:
        raise ConfigError(
            f"--json {path}: cannot be written ({error.strerror}); name a file in a folder you can write to"
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
