"""Files and folders that appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forerun.core.errors import CheckpointError


def write_json_file(path: Path, payload: Any) -> None:
    """Write JSON, replacing the file in one step.

    Args:
        path: The file; its folder exists.
        payload: JSON types; every float is finite.

    Raises:
        OSError: It can't be written; the old file, if any, is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(payload, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def check_new_folder(path: Path) -> None:
    """Find out before any work whether a folder can be made.

    Args:
        path: As :func:`folder_in_the_making` wants it.

    Raises:
        CheckpointError: It is a file or holds something, or the nearest folder above it can't be written to.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: is there and is not empty; name a new folder")
    above = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not os.access(above, os.W_OK):
        raise CheckpointError(f"{path}: can't be made, as {above} can't be written to; name another folder")


@contextmanager
def folder_in_the_making(path: Path) -> Generator[Path]:
    """Give a folder to fill that becomes ``path`` at the end, in one step; on an error nothing is left.

    Args:
        path: Must not exist, or be an empty folder; its parents are made.

    Yields:
        A folder beside ``path``.

    Raises:
        OSError: ``path`` is not empty, or can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
    try:
        yield partial
        partial.chmod(0o755)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
