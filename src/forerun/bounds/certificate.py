"""The certificate as a file: ``manifest.json`` and ``message.bin`` in a ZIP archive, and nothing else.

The manifest holds the problem, the grid, digests of data and message, delta, and the claims. Whatever the classifier
has learned is in the message: another member, such as a file of buffers, makes the archive invalid.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from forerun.bounds import verifier
from forerun.bounds.problem import Problem
from forerun.core.errors import CertificateError, ConfigError
from forerun.data.labelled import LabelledData

_VERIFIER_TIMEOUT_S = 3600


def new_manifest(problem: Problem, *, delta: float, message: bytes) -> dict[str, Any]:
    """Return a manifest without claims."""
    return {
        "format": problem.kind[0],
        "version": problem.kind[1],
        "task": problem.name,
        "grid": problem.grid.as_json(),
        "grid_sha256": problem.grid.sha256,
        "data_sha256": verifier.data_sha256(problem.train.inputs, problem.train.labels),
        "message_sha256": hashlib.sha256(message).hexdigest(),
        "delta": delta,
    }


def write_certificate(path: Path, manifest: Mapping[str, Any], message: bytes) -> None:
    """Write the archive; the same content gives the same bytes.

    Raises:
        ConfigError: The file can't be written.
    """
    members = {"manifest.json": json.dumps(manifest, indent=1, sort_keys=True).encode(), "message.bin": message}
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name a file in a folder of yours") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a certificate, unchecked.

    Raises:
        CertificateError: The file is no certificate.
    """
    try:
        return verifier.read_certificate(path)[0]
    except ValueError as error:
        raise CertificateError(f"{path}: {error}; get a fresh copy") from error


class TrainingData(Protocol):
    """Data that can be handed to a stand-alone verifier."""

    def save(self, path: Path) -> None:
        """Write the ``.npz`` file that the verifier reads."""
        ...


def run_verifier(path: Path, train: LabelledData, options: Sequence[str] = ()) -> dict[str, Any]:
    """Ask the stand-alone verifier of classifiers about a certificate; see :func:`ask_verifier`.

    Args:
        path: The certificate.
        train: The training data.
        options: ``--measure`` or ``--grid-sha256=HEX``.
    """
    return ask_verifier(verifier.__file__, path, train, ["--json", *options])


def ask_verifier(program: str, path: Path, train: TrainingData, options: Sequence[str]) -> dict[str, Any]:
    """Run a verifier in a fresh process that shares nothing with this one.

    Args:
        program: The file of a stand-alone one, or the name of a module; that one finds the packages that this process
            finds.
        path: The certificate.
        train: The training data.
        options: Arguments after the two files, such that it answers in JSON.

    Returns:
        Its answer: ``accepted``, ``reason``, and if accepted all that it recomputed.

    Raises:
        CertificateError: It gave no answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        train.save(data)
        start = ["-I", program] if program.endswith(".py") else ["-m", program]
        command = [sys.executable, *start, str(path), str(data), *options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # which -I ignores
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=_VERIFIER_TIMEOUT_S, check=False, env=environment
        )
    if finished.returncode not in {0, 1} or not finished.stdout:
        said = finished.stderr.strip().splitlines()[-1:] or [f"exit status {finished.returncode}"]
        raise CertificateError(f"{path}: the verifier could not judge it: {said[0]}")
    return json.loads(finished.stdout)
