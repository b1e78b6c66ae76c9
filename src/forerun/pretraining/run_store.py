"""Runs by content: the hash of a run's settings and data names its folder, so that no run is made twice or mixed up."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import CheckpointError

RUN_FILE: Final = "run.json"
"""What the folder is for; written first."""
RESULT_FILE: Final = "result.json"
"""What came out; written last, so that it is there only when all else is."""

_HASH_CHARACTERS: Final = 16


class Run:
    """A run's folder.

    Args:
        folder: Where it is.
        identity: Everything that decides its outcome, as JSON types.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, dict(identity)

    def result(self) -> dict[str, Any] | None:
        """Return what came out, or ``None`` for a run that has not ended."""
        path = self.folder / RESULT_FILE
        return _read(path) if path.is_file() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write what came out: from now on the run is done."""
        write_json_file(self.folder / RESULT_FILE, result)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from making the same run; the system lets go when this one ends, however it does.

        Raises:
            CheckpointError: Another process is at it.
        """
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CheckpointError(
                    f"{self.folder}: another process is making this run; wait for it, or give this one another seed"
                ) from error
            yield


def open_run(store: Path, identity: Mapping[str, Any]) -> Run:
    """Return the run of an identity, its folder made if it is new.

    Args:
        store: Folder of all runs.
        identity: Everything that decides the outcome, as JSON types; equal identities are one run.

    Raises:
        CheckpointError: The folder of that name holds another run.
    """
    folder = store / identity_hash(identity)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN_FILE
    if not path.is_file():
        write_json_file(path, identity)
    return read_run(folder)


def read_run(folder: Path) -> Run:
    """Return the run in a folder.

    Raises:
        CheckpointError: There is none, or its settings were changed after it was made.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: is no run; name a folder that 'forerun pretrain train' printed")
    identity = _read(path)
    if folder.resolve().name != (expected := identity_hash(identity)):
        raise CheckpointError(
            f"{folder}: holds the run {expected}, not the one its name says; give the folder its name back, or "
            "train anew"
        )
    return Run(folder, identity)


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of an identity as canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARACTERS]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); delete its folder and train anew") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object; delete its folder and train anew")
    return content
