"""Labelled examples for certificates, and scikit-learn's digits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from forerun.core.dependencies import import_optional


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
        """Write an ``.npz`` file with ``inputs`` and ``labels``."""
        np.savez(path, inputs=self.inputs, labels=self.labels)


def load_digits() -> LabelledData:
    """Return the 1,797 digits of scikit-learn: 8 x 8 pixels from 0 to 16, ten classes.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    datasets = import_optional("sklearn.datasets", extra="bounds", purpose="the digits task")
    inputs, labels = datasets.load_digits(return_X_y=True)
    return LabelledData(inputs=np.asarray(inputs, dtype=np.float64), labels=np.asarray(labels, dtype=np.int64))
