"""Labelled examples for certificates: scikit-learn's digits, and arrays of the user's own."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledData:
    """Examples in rows, with their classes."""

    inputs: Float[np.ndarray, "n features"]
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Int[np.ndarray, " m"]) -> "LabelledData":
        """Return some examples, in the order given."""
        return LabelledData(inputs=self.inputs[index], labels=self.labels[index])

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file that :func:`load_npz` reads."""
        np.savez(path, inputs=self.inputs, labels=self.labels)


def load_digits() -> LabelledData:
    """Return the 1,797 digits of scikit-learn: 8 x 8 pixels from 0 to 16, ten classes.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    datasets = import_optional("sklearn.datasets", extra="bounds", purpose="the digits task")
    inputs, labels = datasets.load_digits(return_X_y=True)
    return LabelledData(inputs=np.asarray(inputs, dtype=np.float64), labels=np.asarray(labels, dtype=np.int64))


def load_npz(path: Path) -> LabelledData:
    """Return the arrays ``inputs`` [n, ...] and ``labels`` [n] of a file; more axes of inputs are flattened.

    Raises:
        ConfigError: The file is none, or its arrays are not numbers of these shapes.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs, labels = arrays["inputs"], arrays["labels"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path}: cannot be read as data ({error}); write it with numpy.savez(path, inputs=..., labels=...)"
        ) from error
    if inputs.dtype.kind not in "fiu" or labels.dtype.kind not in "iu" or inputs.ndim < 2 or labels.ndim != 1:
        raise ConfigError(
            f"{path}: inputs are {inputs.dtype} {inputs.shape}, labels {labels.dtype} {labels.shape}; "
            "need numbers [n, ...] and whole numbers [n]"
        )
    if len(inputs) != len(labels) or not len(labels):
        raise ConfigError(f"{path}: {len(inputs)} inputs and {len(labels)} labels; need as many of one as of the other")
    return LabelledData(
        inputs=inputs.reshape(len(inputs), -1).astype(np.float64), labels=labels.astype(np.int64, casting="unsafe")
    )
