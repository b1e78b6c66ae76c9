"""What is to be certified: a problem fixed beforehand, and its data split into training examples and a hold-out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from forerun.bounds.prior import ONE_HIDDEN_LAYER, Layer, PriorGrid
from forerun.bounds.verifier import check_data, random_words
from forerun.core.errors import CertificateError, ConfigError
from forerun.data.labelled import LabelledData, load_digits
from forerun.data.labelled_files import load_labelled
from forerun.data.mnist1d import NUM_FEATURES, sample_mnist1d

_BANK: Final = Layer(kind="bank", width=8, kernel=3, pool=2)
_SMALL_CONV: Final = Layer(kind="conv", width=16, kernel=3, pool=2)
_COARSE_BANK: Final = Layer(kind="bank", width=8, kernel=5, pool=4)

# The grids have nearly all architectures that were tried on these data while they were chosen, so that most of that
# choice is paid; what else was chosen in development (filters, scale of the start, magnitude code) is not.
DIGITS_GRID: Final = PriorGrid(
    input_shape=(8, 8, 1),
    num_classes=10,
    input_scale=1 / 16,
    architectures=(
        ONE_HIDDEN_LAYER,
        (_BANK,),
        *((_BANK, Layer(kind="dense", width=width)) for width in (12, 16, 24, 48, 64, 96)),
        (_SMALL_CONV,),
        *((_SMALL_CONV, Layer(kind="dense", width=width)) for width in (32, 64)),
        (Layer(kind="conv", width=16, kernel=4, pool=2),),
    ),
    seeds=(0, 1, 2, 3),
)
FASHION_GRID: Final = PriorGrid(
    input_shape=(28, 28, 1),
    num_classes=10,
    input_scale=1 / 255,
    architectures=(
        *((_COARSE_BANK, Layer(kind="dense", width=width)) for width in (16, 24, 32, 64, 128)),
        *((_COARSE_BANK, Layer(kind="conv", width=width, kernel=3, pool=2)) for width in (24, 32)),
        (
            Layer(kind="bank", width=8, kernel=5, pool=3),
            Layer(kind="conv", width=16, kernel=3, pool=2),
        ),
        *((Layer(kind="cells", width=width, kernel=kernel, pool=4),) for kernel in (3, 5) for width in (4, 6, 8, 12)),
    ),
    subspace_dims=(100, 200, 300, 400, 500, 600, 800, 1000, 2950, 3930, 4910, 6870),
)
MNIST1D_GRID: Final = PriorGrid(
    input_shape=(1, NUM_FEATURES, 1),
    num_classes=10,
    input_scale=1.0,
    architectures=(
        (Layer(kind="conv", width=16, kernel=7, pool=2), Layer(kind="conv", width=32, kernel=5, pool=40)),
        (Layer(kind="dense", width=128),),
    ),
    subspace_dims=(100, 200, 300, 400, 500, 600, 800, 1000),
)
"""Fixed with format 2; the verifier knows the digests of all three."""

_SPLIT_STREAM: Final = 1001
_LEAK_PROBE: Final = 50
_DEFAULT_NUM_TRAIN: Final = {"digits": 1500, "mnist1d": 40_000, "fashion-mnist": 60_000}
_MNIST1D_SAMPLES, _MNIST1D_SEED = 50_000, 0

SOURCES: Final = ("digits", "mnist1d")
"""Data that come without a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One problem.

    Attributes:
        name: ``digits``, ``mnist1d``, ``fashion-mnist`` or ``arrays``.
        grid: The prior.
        train: What the certificate is about.
        holdout: Never seen by training, for the bound printed beside; ``None`` where there is none.
    """

    name: str
    grid: PriorGrid
    train: LabelledData
    holdout: LabelledData | None

    def __post_init__(self) -> None:
        check_training_data(self.train, num_inputs=math.prod(self.grid.input_shape), num_classes=self.grid.num_classes)


def check_training_data(train: LabelledData, *, num_inputs: int, num_classes: int) -> None:
    """Refuse data that can't be certified.

    Args:
        train: Examples.
        num_inputs: Features that the classifier reads.
        num_classes: Classes, each of which must occur.

    Raises:
        ConfigError: They can't be independent draws, or a feature tells the label.
    """
    try:
        check_data(train.inputs, train.labels, num_inputs, num_classes)
    except ValueError as error:
        raise ConfigError(
            f"the training data can't be certified: {error}; give independent draws of every class, each once"
        ) from error
    leak = find_label_column(train)
    if leak is not None:
        raise ConfigError(
            f"column {leak} of the inputs tells the class of every training example: the label has leaked into the "
            "inputs; leave the column out"
        )


def find_label_column(data: LabelledData) -> int | None:
    """Return the first feature that is constant within every class and differs between any two, if there is one.

    Args:
        data: Examples, at least one of each class that occurs.
    """
    candidates, classes = np.arange(data.inputs.shape[1]), np.unique(data.labels)
    for label in classes:
        rows = np.flatnonzero(data.labels == label)
        few = data.inputs[rows[:_LEAK_PROBE]][:, candidates]
        candidates = candidates[(few == few[0]).all(axis=0)]
        part = data.inputs[rows][:, candidates]
        candidates = candidates[(part == part[0]).all(axis=0)]
    for column in candidates.tolist():
        firsts = [data.inputs[np.argmax(data.labels == label), column] for label in classes]
        if len(set(firsts)) == len(firsts) > 1:
            return column
    return None


def digits_task(num_train: int | None = None) -> Task:
    """Return scikit-learn's digits, a random 1,500 (or ``num_train``) of them to train on, the rest held out.

    Raises:
        ConfigError: ``num_train`` is out of range or too small for every class to appear.
        MissingDependencyError: scikit-learn is not installed.
    """
    return _named_task("digits", DIGITS_GRID, _load("digits"), num_train)


def mnist1d_task(num_train: int | None = None) -> Task:
    """Return 50,000 draws of MNIST-1D, the first 40,000 (or ``num_train``) to train on.

    Raises:
        ConfigError: ``num_train`` is out of range.
    """
    return _named_task("mnist1d", MNIST1D_GRID, _load("mnist1d"), num_train)


def fashion_task(folder: Path, num_train: int | None = None) -> Task:
    """Return Fashion-MNIST, a random 60,000 (or ``num_train``) of all 70,000 to train on.

    The published split has the same number of each class on both sides; a random part of all of them has not.

    Args:
        folder: With the four IDX files.
        num_train: Examples to train on.

    Raises:
        ConfigError: The files are missing or of another data set.
    """
    data = _load(str(folder))
    if data.inputs.shape[1] != math.prod(FASHION_GRID.input_shape) or len(set(data.labels.tolist())) != 10:
        raise ConfigError(
            f"{folder}: has examples of {data.inputs.shape[1]} pixels; Fashion-MNIST has 784, ten classes"
        )
    return _named_task("fashion-mnist", FASHION_GRID, data, num_train)


def arrays_task(path: Path, *, input_scale: float, num_train: int | None = None) -> Task:
    """Return the user's arrays; by default a random five sixths of them to train on.

    Args:
        path: What :func:`~forerun.data.labelled_files.load_labelled` reads.
        input_scale: Fixed multiplier of the inputs; to measure it on the same data would have to be paid for.
        num_train: Examples to train on; all of them for no hold-out.

    Raises:
        ConfigError: The file or the number is unusable, or the data can't be independent draws.
    """
    data = _load(str(path))
    grid = PriorGrid(input_shape=(1, data.inputs.shape[1], 1), num_classes=count_classes(data), input_scale=input_scale)
    train, holdout = split_data(data, num_train)
    return Task(name="arrays", grid=grid, train=train, holdout=holdout)


def count_classes(data: LabelledData) -> int:
    """Return the largest label plus one, at least 2."""
    return max(2, int(data.labels.max()) + 1)


def training_data(source: str, manifest: Mapping[str, Any]) -> LabelledData:
    """Return the training examples that a certificate is about, split as they were when it was made.

    Args:
        source: One of :data:`SOURCES`, or a file or folder.
        manifest: The certificate's; only its number of examples is used, and the verifier compares digests.

    Raises:
        ConfigError: The file is unusable.
        CertificateError: The manifest does not say how many examples there were.
    """
    data = _load(source)
    claims = manifest.get("claims")
    num_train = claims.get("num_samples") if isinstance(claims, dict) else None
    if type(num_train) is not int or not 1 <= num_train <= len(data):
        raise CertificateError(f"the certificate is about {num_train} examples, {source} has {len(data)}")
    return split_data(data, num_train)[0]


def load_source(source: str) -> tuple[LabelledData, tuple[int, ...]]:
    """Return all examples of a source, and the shape of one; of pictures that a folder has twice, the first.

    Args:
        source: One of :data:`SOURCES`, or a file or folder.

    Raises:
        ConfigError: The file is unusable, or there is none.
    """
    if source == "digits":
        return load_digits(), (8, 8)
    if source == "mnist1d":
        return sample_mnist1d(_MNIST1D_SAMPLES, _MNIST1D_SEED), (NUM_FEATURES,)
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"--data {source}: no such file; give {', '.join(SOURCES)}, or a file or folder of data")
    data, shape = load_labelled(path)
    return _without_repeats(data) if path.is_dir() else data, shape


def _load(source: str) -> LabelledData:
    return load_source(source)[0]


def _without_repeats(data: LabelledData) -> LabelledData:
    first = {row.tobytes(): index for index, row in reversed(list(enumerate(data.inputs)))}
    return data if len(first) == len(data) else data.rows(np.array(sorted(first.values())))


def _named_task(name: str, grid: PriorGrid, data: LabelledData, num_train: int | None) -> Task:
    train, holdout = split_data(data, _DEFAULT_NUM_TRAIN[name] if num_train is None else num_train)
    return Task(name=name, grid=grid, train=train, holdout=holdout)


def split_data(data: LabelledData, num_train: int | None) -> tuple[LabelledData, LabelledData | None]:
    """Return a random part to train on, and the rest or ``None``; the same at every call.

    Args:
        data: All examples.
        num_train: How many to train on; ``None``: five sixths.

    Raises:
        ConfigError: There are not so many.
    """
    num_train = len(data) * 5 // 6 if num_train is None else num_train
    if not 1 <= num_train <= len(data):
        raise ConfigError(f"num_train={num_train}: must be 1 to {len(data)}, the number of examples")
    order = np.argsort(random_words(0, _SPLIT_STREAM, len(data)), kind="stable")
    holdout = data.rows(order[num_train:]) if num_train < len(data) else None
    return data.rows(order[:num_train]), holdout
