"""The ensemble checkpoint: one file that names members and the average of their laws."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forerun.core.errors import CheckpointError
from forerun.nn.law_average import AVERAGES, Average

ENSEMBLE_FILE: Final = "ensemble.json"
"""Its name; a folder that has it is an ensemble."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleFile:
    """Which law an ensemble is.

    Attributes:
        members: Folder of each member's run or model, in order.
        average: How their laws are averaged.
    """

    members: tuple[Path, ...]
    average: Average


def read_ensemble_file(folder: Path) -> EnsembleFile:
    """Read an ensemble checkpoint.

    Args:
        folder: Where ``ensemble.json`` lies; members that are not absolute are taken from here.

    Raises:
        CheckpointError: The file is missing or damaged, names no member, or an average that there is not.
    """
    path = folder / ENSEMBLE_FILE
    advice = "write it anew with 'forerun pretrain ensemble RUN... --data DIR --out DIR'"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names, average = content["members"], content["average"]
        members = tuple(folder / name for name in names)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error!r}); {advice}") from error
    if average not in AVERAGES:
        raise CheckpointError(f"{path}: average={average!r}: must be one of {', '.join(AVERAGES)}; {advice}")
    if isinstance(names, str) or not members:
        raise CheckpointError(f"{path}: members={names!r}: must be a list of one folder at least; {advice}")
    return EnsembleFile(members=members, average=average)
