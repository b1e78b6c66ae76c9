"""Compressibility by width: bits that networks need for the same training error, and their least certified bound."""

from typing import Any

import numpy as np

from forerun.bounds.phenomena.by_width import bound_by_width
from forerun.bounds.phenomena.noisy_digits import shuffled_digits
from forerun.bounds.search import SearchConfig

WIDTHS = (2, 4, 8, 16, 64, 256)
DIMS = (20, 40, 80, 120, 160)
TARGET_ERROR = 0.25
NUM_SPLITS = 4
_NUM_TRAIN = 1200


def measure_compressibility() -> dict[str, Any]:
    """Certify networks of growing width at several numbers of coefficients, on several splits of the digits.

    Returns:
        ``rows`` by split, width and dimension; ``by_width``, with an entry for each split, the best bound of a width
        and the bits of its shortest message with a training error of at most ``target_error``, or ``None`` if no
        message reaches it.
    """
    rows = []
    for split in range(NUM_SPLITS):
        data = shuffled_digits(split)
        train, test = data.rows(np.arange(_NUM_TRAIN)), data.rows(np.arange(_NUM_TRAIN, len(data)))
        found = bound_by_width(
            train, test, widths=WIDTHS, dims=DIMS, search=SearchConfig(nat_weights=(2.0,), num_sweeps=0)
        )
        rows += [{"split": split, **row} for row in found]
    summary = []
    for width in WIDTHS:
        own = [[row for row in rows if (row["width"], row["split"]) == (width, split)] for split in range(NUM_SPLITS)]
        summary.append({
            "width": width,
            "num_parameters": own[0][0]["num_parameters"],
            "least_bound": [min(row["bound"] for row in split) for split in own],
            "bits_at_target": [
                min((row["bits"] for row in split if row["training_error"] <= TARGET_ERROR), default=None)
                for split in own
            ],
        })  # fmt: skip
    return {"num_train": _NUM_TRAIN, "target_error": TARGET_ERROR, "rows": rows, "by_width": summary}
