"""What a study has measured so far, part by part, so that one that was cut off goes on where it was."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import ConfigError


class Parts:
    """Measured parts in a folder, each in a file of its own.

    Args:
        folder: Made if it is not there.
        identity: What all parts are of, as JSON types; kept with each.

    Raises:
        ConfigError: The folder can't be made.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder, self._identity = folder, dict(identity)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return a part: as it was measured before, or measured now and kept.

        Args:
            name: Of its file.
            measure: Gives it as JSON types.

        Raises:
            ConfigError: It was measured of something else.
        """
        path = self._folder / f"{name}.json"
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["identity"] != self._identity:
                raise ConfigError(f"{path}: was measured of another study or other models; name another folder")
            return kept["value"]
        value = measure()
        write_json_file(path, {"identity": self._identity, "value": value})
        return value
