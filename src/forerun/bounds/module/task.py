"""A module and the data that it is certified on."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from forerun.bounds.module.factory import Factory
from forerun.bounds.module.grid import ModuleGrid, open_grid
from forerun.bounds.task import check_training_data, count_classes, load_source, split_data
from forerun.core.errors import ConfigError
from forerun.data.labelled import LabelledData, read_dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleTask:
    """One problem.

    Attributes:
        grid: The prior.
        train: What the certificate is about.
        holdout: Never seen by training, for the bound printed beside; ``None`` where there is none.
        base: Tensors that the module's start takes from a file.
    """

    grid: ModuleGrid
    train: LabelledData
    holdout: LabelledData | None
    base: Path | None = None

    def __post_init__(self) -> None:
        num_inputs = math.prod(self.grid.input_shape)
        check_training_data(self.train, num_inputs=num_inputs, num_classes=self.grid.num_classes)


def module_task(
    factory: str | Factory,
    data: "str | Path | LabelledData | Dataset[Any]",
    *,
    input_shape: tuple[int, ...] | None = None,
    num_train: int | None = None,
    base: Path | None = None,
    base_is_independent: bool = False,
) -> ModuleTask:
    """Return the problem of a module.

    Args:
        factory: Makes the module without arguments; a name ``PACKAGE.MODULE:FACTORY``, or what has one.
        data: A source as :func:`~forerun.bounds.task.load_source` takes it, examples, or a PyTorch dataset.
        input_shape: Of an example, as the module reads it; ``None``: as the data have it.
        num_train: Examples to train on; all of them for no hold-out, ``None`` for a random five sixths.
        base: A safetensors file whose tensors replace those of the same names in the start.
        base_is_independent: The user's word that it was made without these data.

    Raises:
        ConfigError: Data or module are unusable.
    """
    if isinstance(data, LabelledData):
        examples, shape = data, data.inputs.shape[1:]
    elif isinstance(data, Dataset):
        examples, shape = read_dataset(data)
    else:
        examples, shape = load_source(str(data))
    shape = shape if input_shape is None else input_shape
    if math.prod(shape) != examples.inputs.shape[1]:
        raise ConfigError(f"input_shape={shape}: has {math.prod(shape)} numbers, an example {examples.inputs.shape[1]}")
    train, holdout = split_data(examples, num_train)
    grid = open_grid(
        factory,
        input_shape=shape,
        num_classes=count_classes(examples),
        base=base,
        base_is_independent=base_is_independent,
    )
    return ModuleTask(grid=grid, train=train, holdout=holdout, base=base)
