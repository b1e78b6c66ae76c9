"""Rows of Parquet files and of Hugging Face datasets; both libraries are optional."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from forerun.core.dependencies import import_optional
from forerun.core.errors import CorpusError

_BATCH_ROWS = 1024


def read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file in order, a batch in memory at a time.

    Raises:
        CorpusError: The file is not Parquet, is damaged, or holds bytes that are no UTF-8 where text should be.
        MissingDependencyError: pyarrow is not installed.
    """
    with _opened(file, extra="pretrain") as opened:
        for batch in opened.iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()


def read_parquet_columns(file: Path, *, extra: str) -> dict[str, np.ndarray]:
    """Return the columns of a Parquet file in order; lists that are all alike in depth and length become axes.

    Args:
        file: To read.
        extra: Of Forerun, that brings pyarrow for this.

    Returns:
        Arrays ``[rows, ...]`` of the column's type; of objects where that is text or lists differ in length.

    Raises:
        CorpusError: As of :func:`read_parquet`.
        MissingDependencyError: pyarrow is not installed.
    """
    with _opened(file, extra=extra) as opened:
        table = opened.read()
        return {name: _as_array(table.column(name).combine_chunks(), len(table)) for name in table.column_names}


def _as_array(values: Any, num_rows: int) -> np.ndarray:
    shape, column = [num_rows], values
    while hasattr(values, "value_lengths") or hasattr(values.type, "list_size"):
        lengths = (
            set(values.value_lengths().to_pylist()) if hasattr(values, "value_lengths") else {values.type.list_size}
        )
        if len(lengths) != 1 or None in lengths or values.null_count:
            return np.array([*column.to_pylist(), None], dtype=object)[:-1]
        shape.append(lengths.pop())
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(shape)


@contextmanager
def _opened(file: Path, *, extra: str) -> Iterator[Any]:
    """Open a Parquet file; what goes wrong while it is read is one clear error."""
    parquet = import_optional("pyarrow.parquet", extra=extra, purpose=f"reading {file.name}")
    errors = import_optional("pyarrow", extra=extra, purpose=f"reading {file.name}")
    try:
        with parquet.ParquetFile(file) as opened:
            yield opened
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file}: has a string that is not UTF-8 ({error.reason}); write it again") from error
    except (errors.ArrowException, OSError) as error:  # which of the two, depends on where the damage lies
        raise CorpusError(f"{file}: is not a Parquet file, or a damaged one ({error}); write it again") from error


def read_hub_dataset(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset of the Hugging Face hub, streamed.

    Args:
        name: ``OWNER/DATASET``, optionally ``@SPLIT`` after it (``train`` if not said).

    Raises:
        CorpusError: There is no such dataset or split, or the hub can't be reached.
        MissingDependencyError: datasets is not installed.
    """
    datasets = import_optional("datasets", extra="pretrain", purpose=f"reading the dataset {name}")
    dataset, _, split = name.partition("@")
    try:
        yield from datasets.load_dataset(dataset, split=split or "train", streaming=True)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"hf:{name}: can't be read ({error}); give hf:OWNER/DATASET or hf:OWNER/DATASET@SPLIT, and check the "
            "network"
        ) from error
