"""Benign overfitting: one model fits any labels, generalises where there is structure, and its evidence tells which."""

import math
from typing import Any

import numpy as np

from forerun.bounds.phenomena.noisy_digits import error_rate, one_hot, replace_labels, shuffled_digits

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_NUM_TRAIN, _LENGTH_SCALE, _JITTER = 900, 1.5, 1e-3


def measure_benign_overfitting(seed: int = 0) -> dict[str, Any]:
    """Fit a Gaussian process (squared exponential kernel, one output per class) at several shares of random labels.

    Args:
        seed: Of split and labels.

    Returns:
        By share: error on the training labels as given, error on clean test labels, and the log marginal likelihood
        per example and class, in nats.
    """
    data = shuffled_digits(seed)
    train, test = data.rows(np.arange(_NUM_TRAIN)), data.rows(np.arange(_NUM_TRAIN, len(data)))
    kernel = _squared_exponential(train.inputs, train.inputs)
    between = _squared_exponential(test.inputs, train.inputs)
    lower = np.linalg.cholesky(kernel + _JITTER * np.eye(_NUM_TRAIN))
    log_determinant = 2 * float(np.log(np.diag(lower)).sum())
    rows = []
    for share in SHARES:
        labels = replace_labels(train.labels, share, seed + 1)
        targets = one_hot(labels)
        whitened = np.linalg.solve(lower, targets)
        weights = np.linalg.solve(lower.T, whitened)
        fit = float((whitened**2).sum()) / targets.shape[1]
        evidence = -0.5 * (fit + log_determinant + _NUM_TRAIN * math.log(2 * math.pi)) / _NUM_TRAIN
        rows.append({
            "random_labels": share,
            "training_error": error_rate(kernel @ weights, labels),
            "test_error": error_rate(between @ weights, test.labels),
            "log_evidence_per_example": evidence,
        })  # fmt: skip
    return {"num_train": _NUM_TRAIN, "rows": rows}


def _squared_exponential(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2 * left @ right.T
    return np.exp(-np.maximum(squares, 0) / (2 * _LENGTH_SCALE**2))
