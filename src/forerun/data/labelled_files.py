"""Labelled examples out of files: NumPy archives, CSV, Parquet, and IDX pairs as MNIST and its kin come."""

import gzip
import math
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

from forerun.core.errors import ConfigError
from forerun.data.columnar import read_parquet_columns
from forerun.data.labelled import LabelledData, flatten_examples

_IDX_TYPES: Final = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_IMAGES: Final = "-images-idx3-ubyte"
_LABEL: Final = "label"


def load_labelled(path: Path) -> tuple[LabelledData, tuple[int, ...]]:
    """Read labelled examples.

    Args:
        path: ``.npz`` with ``inputs`` [n, ...] and ``labels`` [n]; ``.csv`` with a header, the column ``label`` or else
            the last one being the class; ``.parquet`` likewise, its columns numbers or lists of one length and depth;
            a folder of IDX pairs ``NAME-images-idx3-ubyte[.gz]`` and
            ``NAME-labels-idx1-ubyte[.gz]``, joined in the order of their names.

    Returns:
        The examples, flattened, and the shape of one as the file has it.

    Raises:
        ConfigError: The file is unusable.
        CorpusError: A Parquet file is damaged.
        MissingDependencyError: Parquet without pyarrow.
    """
    if path.is_dir():
        inputs, labels = _read_idx_folder(path)
    elif path.suffix == ".csv":
        inputs, labels = _read_csv(path)
    elif path.suffix == ".parquet":
        inputs, labels = _read_parquet(path)
    else:
        inputs, labels = _read_npz(path)
    if inputs.dtype.kind not in "fiu" or labels.dtype.kind not in "iu" or inputs.ndim < 2 or labels.ndim != 1:
        raise ConfigError(
            f"{path}: inputs are {inputs.dtype} {inputs.shape}, labels {labels.dtype} {labels.shape}; "
            "need numbers [n, ...] and whole numbers [n]"
        )
    if len(inputs) != len(labels) or not len(labels):
        raise ConfigError(f"{path}: {len(inputs)} inputs and {len(labels)} labels; need as many of one as of the other")
    whole = labels.astype(np.int64, casting="unsafe")
    return LabelledData(inputs=flatten_examples(inputs), labels=whole), inputs.shape[1:]


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["inputs"], arrays["labels"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path}: cannot be read as data ({error}); write it with numpy.savez(path, inputs=..., labels=...)"
        ) from error


def _read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of a table; labels that are not whole become floats, which the caller refuses."""
    try:
        with path.open(encoding="utf-8-sig") as lines, warnings.catch_warnings():
            warnings.simplefilter("error")
            names = [name.strip().strip('"') for name in lines.readline().split(",")]
            table = np.loadtxt(lines, delimiter=",", ndmin=2)
    except (OSError, ValueError, UserWarning) as error:
        raise ConfigError(f"{path}: cannot be read as a table ({error}); need a header line, then numbers") from error
    if table.shape[1] != len(names) or len(names) < 2:
        raise ConfigError(f"{path}: {len(names)} names and {table.shape[1]} columns; need the same number, 2 or more")
    column = names.index(_LABEL) if _LABEL in names else len(names) - 1
    return np.delete(table, column, axis=1), _whole(table[:, column])


def _whole(labels: np.ndarray) -> np.ndarray:
    """Return labels as whole numbers, or as they are where they are none."""
    return labels.astype(np.int64) if np.isfinite(labels).all() and (labels == np.floor(labels)).all() else labels


def _read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    columns = read_parquet_columns(path, extra="bounds")
    label = _LABEL if _LABEL in columns else next(reversed(columns), _LABEL)
    labels = columns.pop(label, np.zeros(0))
    if not columns or not len(labels) or labels.dtype.kind not in "fiu":
        raise ConfigError(f"{path}: has no column of labels beside others; need rows with a whole number in {_LABEL!r}")
    parts = [values.reshape(len(labels), -1) for values in columns.values()]
    if any(values.dtype.kind not in "fiub" for values in parts):
        text = [name for name, values in columns.items() if values.dtype.kind not in "fiub"]
        raise ConfigError(f"{path}: the columns {', '.join(text)} are no numbers; turn them into numbers or drop them")
    alone = next(iter(columns.values()))
    return alone if len(columns) == 1 and alone.ndim > 1 else np.concatenate(parts, axis=1), _whole(labels)


def _read_idx_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    files = sorted(file for file in folder.iterdir() if file.name.removesuffix(".gz").endswith(_IMAGES))
    if not files:
        raise ConfigError(
            f"{folder}: has no file NAME{_IMAGES} or NAME{_IMAGES}.gz; name the folder with the IDX files"
        )
    inputs, labels = [], []
    for images in files:
        stem = images.name.removesuffix(".gz").removesuffix(_IMAGES)
        partners = [images.with_name(f"{stem}-labels-idx1-ubyte{end}") for end in ("", ".gz")]
        partner = next((file for file in partners if file.is_file()), None)
        if partner is None:
            raise ConfigError(f"{partners[0]}: no such file beside {images.name}; put it there, packed or not")
        inputs.append(read_idx(images))
        labels.append(read_idx(partner))
        if len(inputs[-1]) != len(labels[-1]) or inputs[-1].shape[1:] != inputs[0].shape[1:]:
            raise ConfigError(f"{images}: {inputs[-1].shape} does not fit to {partner.name} or the other files")
    return np.concatenate(inputs), np.concatenate(labels)


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file, packed by gzip or not.

    Raises:
        ConfigError: It is none, or is cut short.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        zeros, kind, num_axes = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{num_axes}I", content[4 : 4 + 4 * num_axes])
        values = np.frombuffer(content, dtype=_IDX_TYPES[kind], offset=4 + 4 * num_axes)
    except (OSError, EOFError, KeyError, ValueError, struct.error) as error:
        raise ConfigError(f"{path}: is no IDX file ({type(error).__name__}: {error}); get a fresh copy") from error
    if zeros != 0 or num_axes < 1 or values.size != math.prod(shape):
        raise ConfigError(f"{path}: has {values.size} values, its header says {shape}; get a fresh copy")
    return values.reshape(shape).astype(values.dtype.newbyteorder("="))
