"""Measure every phenomenon, write its numbers, draw it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from forerun.bounds.phenomena.benign import measure_benign_overfitting
from forerun.bounds.phenomena.compressibility import measure_compressibility
from forerun.bounds.phenomena.figures import draw_figure
from forerun.bounds.phenomena.overparametrisation import measure_double_descent
from forerun.bounds.phenomena.soft_bias import measure_soft_bias
from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError

PHENOMENA: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "benign_overfitting": measure_benign_overfitting,
    "double_descent": measure_double_descent,
    "soft_bias": measure_soft_bias,
    "compressibility": measure_compressibility,
}


def reproduce(
    folder: Path, names: tuple[str, ...] = tuple(PHENOMENA), report: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write ``NAME.json`` and ``NAME.png`` for each phenomenon.

    Args:
        folder: Made if it is not there.
        names: Which; keys of :data:`PHENOMENA`.
        report: Told a line before and after each; the longest, compressibility, takes about four minutes.

    Returns:
        The files.

    Raises:
        ConfigError: The folder can't be written.
        MissingDependencyError: matplotlib or scikit-learn is not installed.
    """
    import_optional("matplotlib.figure", extra="plot", purpose="a figure")
    files = []
    for name in names:
        began = time.perf_counter()
        report(f"{name}: measuring")
        result = PHENOMENA[name]()
        numbers, picture = folder / f"{name}.json", folder / f"{name}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            numbers.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            draw_figure(name, result, picture)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
        report(f"{name}: {numbers} and {picture.name}, {time.perf_counter() - began:.0f} s")
        files += [numbers, picture]
    return files
