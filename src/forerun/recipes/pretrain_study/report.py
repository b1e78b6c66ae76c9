"""The report of a study: measures what is not measured yet, writes ``report.html`` and ``report.json``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import ConfigError
from forerun.recipes.pretrain_study.findings import find
from forerun.recipes.pretrain_study.measure import measure
from forerun.recipes.pretrain_study.page import page_html
from forerun.recipes.pretrain_study.study_file import read_study

PAGE_FILE: Final = "report.html"
JSON_FILE: Final = "report.json"


def write_report(folder: Path, *, report: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Write the report of a finished study into its folder.

    Args:
        folder: A folder of :func:`forerun.recipes.pretrain_study.reproduce.reproduce`.
        report: Told (runs measured, all of them).

    Returns:
        What ``report.json`` holds.

    Raises:
        CheckpointError: The folder holds no finished study, or a run is missing.
        CorpusError: The corpus was changed.
        ConfigError: The folder can't be written.

    Effects:
        Opens the test split, unless these runs were measured before; ``test_split.json`` says how often that was.
    """
    study = read_study(folder)
    try:
        found = find(study, measure(folder, study, report=report))
        write_json_file(folder / JSON_FILE, found)
        partial = folder / f".{PAGE_FILE}.partial"
        partial.write_text(page_html(found), encoding="utf-8")
        partial.replace(folder / PAGE_FILE)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); make room, or check its rights") from error
    return found
