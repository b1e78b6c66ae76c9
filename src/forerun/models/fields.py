"""Typed look-ups in what a model file says about itself (GGUF metadata, ``config.json``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Never

from forerun.core.errors import ModelLoadError


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """Named values of a file; a value that is missing or of the wrong kind is an error that names file and key.

    In every look-up ``default`` stands in for a key that is absent or null; where it is ``None`` the key is required.

    Attributes:
        source: The file, for messages.
        values: The values as the file has them.
    """

    source: str
    values: Mapping[str, object]

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number."""
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            self._reject(key, value, "a whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Return a number."""
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            self._reject(key, value, "a number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._get(key, default)
        return value if isinstance(value, str) else self._reject(key, value, "a string")

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return a truth value."""
        value = self._get(key, default)
        return value if isinstance(value, bool) else self._reject(key, value, "true or false")

    def integers(self, key: str, default: list[int] | None = None) -> list[int]:
        """Return whole numbers; a single one counts as a list of one."""
        value = self._get(key, default)
        items = value if isinstance(value, list) else [value]
        return [item if isinstance(item, int) else self._reject(key, item, "whole numbers") for item in items]

    def strings(self, key: str, default: list[str] | None = None) -> list[str]:
        """Return a list of strings."""
        value = self._get(key, default)
        items = value if isinstance(value, list) else self._reject(key, value, "a list of strings")
        return [item if isinstance(item, str) else self._reject(key, item, "a list of strings") for item in items]

    def group(self, key: str) -> "Fields | None":
        """Return the values nested under ``key``; ``None`` where it is absent."""
        if key not in self:
            return None
        value = self.values[key]
        if not isinstance(value, Mapping):
            self._reject(key, value, "a group of values")
        return Fields(source=f"{self.source}: {key}", values=value)

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelLoadError(
                f"{self.source}: {key!r} is missing, and the model can't be run without it; download or convert the "
                "model again"
            )
        return value

    def _reject(self, key: str, value: object, expected: str) -> Never:
        raise ModelLoadError(
            f"{self.source}: {key}={value!r}: must be {expected}; the file is corrupt or was edited: download or "
            "convert the model again"
        )
