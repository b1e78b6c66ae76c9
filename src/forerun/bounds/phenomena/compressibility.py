"""Compressibility by width: bits that networks need for the same training error, and their least certified bound."""

from typing import Any

import numpy as np

from forerun.bounds.phenomena.by_width import bound_by_width
from forerun.bounds.phenomena.noisy_digits import shuffled_digits
from forerun.bounds.search import SearchConfig

WIDTHS = (2, 4, 8, 16, 64, 256)
DIMS = (20, 40, 80, 120, 160)
TARGET_ERROR = 0.25
_NUM_TRAIN = 1200


def measure_compressibility(seed: int = 0, search: SearchConfig | None = None) -> dict[str, Any]:
    """Certify networks of growing width at several numbers of coefficients.

    Args:
        seed: Of the split.
        search: How to search.

    Returns:
        ``rows`` by width and dimension; ``by_width`` with the best bound of a width and the bits of its shortest
        message with a training error of at most ``target_error``, or ``None`` if no message reaches it.
    """
    data = shuffled_digits(seed)
    train, test = data.rows(np.arange(_NUM_TRAIN)), data.rows(np.arange(_NUM_TRAIN, len(data)))
    rows = bound_by_width(
        train, test, widths=WIDTHS, dims=DIMS, search=search or SearchConfig(nat_weights=(2.0,), num_sweeps=0)
    )
    summary = []
    for width in WIDTHS:
        own = [row for row in rows if row["width"] == width]
        reached = [row["bits"] for row in own if row["training_error"] <= TARGET_ERROR]
        summary.append({
            "width": width,
            "num_parameters": own[0]["num_parameters"],
            "least_bound": min(row["bound"] for row in own),
            "bits_at_target": min(reached) if reached else None,
        })  # fmt: skip
    return {"num_train": _NUM_TRAIN, "target_error": TARGET_ERROR, "rows": rows, "by_width": summary}
