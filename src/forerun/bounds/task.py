"""What is to be certified: a problem fixed beforehand, and its data split into training examples and a hold-out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from forerun.bounds.prior import PriorGrid
from forerun.bounds.verifier import check_data, random_words
from forerun.core.errors import CertificateError, ConfigError
from forerun.data.labelled import LabelledData, load_digits, load_npz

DIGITS_GRID: Final = PriorGrid(num_inputs=64, num_classes=10, input_scale=1 / 16)
"""Fixed with format 1; the verifier knows its digest."""

_SPLIT_STREAM: Final = 1001
_DIGITS_NUM_TRAIN: Final = 1500


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One problem.

    Attributes:
        name: ``digits`` or ``arrays``.
        grid: The prior.
        train: What the certificate is about.
        holdout: Never seen by training, for the bound printed beside; ``None`` where there is none.
    """

    name: str
    grid: PriorGrid
    train: LabelledData
    holdout: LabelledData | None

    def __post_init__(self) -> None:
        try:
            check_data(self.train.inputs, self.train.labels, self.grid.num_inputs, self.grid.num_classes)
        except ValueError as error:
            raise ConfigError(
                f"the training data can't be certified: {error}; give independent draws of every class, each once"
            ) from error


def digits_task(num_train: int | None = None) -> Task:
    """Return scikit-learn's digits, a random 1,500 (or ``num_train``) of them to train on, the rest held out.

    Raises:
        ConfigError: ``num_train`` is out of range or too small for every class to appear.
        MissingDependencyError: scikit-learn is not installed.
    """
    data = load_digits()
    train, holdout = _split(data, _DIGITS_NUM_TRAIN if num_train is None else num_train)
    return Task(name="digits", grid=DIGITS_GRID, train=train, holdout=holdout)


def arrays_task(path: Path, *, input_scale: float, num_train: int | None = None) -> Task:
    """Return the user's arrays; by default a random five sixths of them to train on.

    Args:
        path: ``.npz`` with ``inputs`` and ``labels``.
        input_scale: Fixed multiplier of the inputs; to measure it on the same data would have to be paid for.
        num_train: Examples to train on; all of them for no hold-out.

    Raises:
        ConfigError: The file or the number is unusable, or the data can't be independent draws.
    """
    data = load_npz(path)
    train, holdout = _split(data, len(data) * 5 // 6 if num_train is None else num_train)
    grid = PriorGrid(
        num_inputs=data.inputs.shape[1], num_classes=max(2, int(data.labels.max()) + 1), input_scale=input_scale
    )
    return Task(name="arrays", grid=grid, train=train, holdout=holdout)


def _split(data: LabelledData, num_train: int) -> tuple[LabelledData, LabelledData | None]:
    if not 1 <= num_train <= len(data):
        raise ConfigError(f"num_train={num_train}: must be 1 to {len(data)}, the number of examples")
    order = np.argsort(random_words(0, _SPLIT_STREAM, len(data)), kind="stable")
    holdout = data.rows(order[num_train:]) if num_train < len(data) else None
    return data.rows(order[:num_train]), holdout


def training_data(source: str, manifest: Mapping[str, Any]) -> LabelledData:
    """Return the training examples that a certificate is about, split as they were when it was made.

    Args:
        source: ``digits`` or the ``.npz`` file.
        manifest: The certificate's; only its number of examples is used, and the verifier compares digests.

    Raises:
        ConfigError: The file is unusable.
        CertificateError: The manifest does not say how many examples there were.
    """
    data = load_digits() if source == "digits" else load_npz(Path(source))
    claims = manifest.get("claims")
    num_train = claims.get("num_samples") if isinstance(claims, dict) else None
    if type(num_train) is not int or not 1 <= num_train <= len(data):
        raise CertificateError(f"the certificate is about {num_train} examples, {source} has {len(data)}")
    return _split(data, num_train)[0]
