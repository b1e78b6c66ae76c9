"""Labelled examples for certificates, and scikit-learn's digits."""

from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float, Int

from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.data import Dataset

_NUM_READ_TWICE: Final = 8


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


def read_dataset(dataset: "Dataset[Any]") -> tuple[LabelledData, tuple[int, ...]]:
    """Return the examples of a PyTorch dataset.

    Args:
        dataset: With a length; each item is an input (a tensor or array of numbers) and a whole number, its class.

    Returns:
        The examples, flattened, in order, and the shape of one.

    Raises:
        ConfigError: It has no length, items are of another kind or differ in shape, or an item read twice differs:
            augmentation would make the risk one of other examples.
    """
    length = len(dataset) if isinstance(dataset, Sized) else 0
    if length == 0:
        raise ConfigError(f"dataset {type(dataset).__name__}: needs a length above 0; read what it yields into arrays")
    items = [dataset[index] for index in range(length)]
    try:
        inputs = np.stack([np.asarray(item) for item, _ in items])
        again = np.stack([np.asarray(dataset[index][0]) for index in range(min(length, _NUM_READ_TWICE))])
        classes = np.array([int(label) for _, label in items], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"dataset {type(dataset).__name__}: items must be an input of numbers, all of one shape, and a class "
            f"({error}); add a transform to a tensor"
        ) from error
    if not np.array_equal(inputs[: len(again)], again, equal_nan=True):
        raise ConfigError(
            f"dataset {type(dataset).__name__}: an item differs when read again; take random augmentation out, for the "
            "bound is about the examples themselves"
        )
    return LabelledData(inputs=flatten_examples(inputs), labels=classes), inputs.shape[1:]


def flatten_examples(inputs: np.ndarray) -> np.ndarray:
    """Return examples [n, ...] as rows [n, features]; bytes stay bytes, other numbers become float64."""
    flat = inputs.reshape(len(inputs), -1)
    return flat if flat.dtype == np.uint8 else flat.astype(np.float64)


def load_digits() -> LabelledData:
    """Return the 1,797 digits of scikit-learn: 8 x 8 pixels from 0 to 16, ten classes.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    datasets = import_optional("sklearn.datasets", extra="bounds", purpose="the digits task")
    inputs, labels = datasets.load_digits(return_X_y=True)
    return LabelledData(inputs=np.asarray(inputs, dtype=np.float64), labels=np.asarray(labels, dtype=np.int64))
