"""Double descent of random features, with effective dimensionality, its complement, and a certified bound beside."""

from typing import Any

import numpy as np

from forerun.bounds.phenomena.by_width import bound_by_width
from forerun.bounds.phenomena.noisy_digits import error_rate, one_hot, replace_labels, shuffled_digits
from forerun.bounds.search import SearchConfig
from forerun.data.labelled import LabelledData

NUM_FEATURES = (20, 50, 100, 200, 260, 300, 340, 400, 600, 1200, 2400, 4800)
BOUND_WIDTHS = (4, 16, 64, 256, 1024)
_NUM_TRAIN, _NOISE, _Z, _NUM_SEEDS = 300, 0.15, 1e-5, 3
_BOUND_NUM_TRAIN = 900


def measure_double_descent(seed: int = 0, search: SearchConfig | None = None) -> dict[str, Any]:
    """Fit least squares of least norm on random ReLU features, and certify networks of growing width.

    Args:
        seed: Of split, labels and features.
        search: How the certified networks are searched.

    Returns:
        ``rows`` by number of features: test error (median over seeds), N_eff of the features' Gram matrix over n at z,
        and its complement min(n, features) - N_eff. ``bounds`` by width: certified bound beside the test error, on
        more examples with the same noise.
    """
    rows = []
    for num_features in NUM_FEATURES:
        results = [_random_features(num_features, seed + shift) for shift in range(_NUM_SEEDS)]
        dimension = float(np.median([item[1] for item in results]))
        rows.append({
            "num_features": num_features,
            "test_error": float(np.median([item[0] for item in results])),
            "effective_dimension": dimension,
            "complement": min(num_features, _NUM_TRAIN) - dimension,
        })  # fmt: skip
    data = shuffled_digits(seed)
    labels = replace_labels(data.labels, _NOISE, seed + 1)
    train = LabelledData(inputs=data.inputs, labels=labels).rows(np.arange(_BOUND_NUM_TRAIN))
    test = LabelledData(inputs=data.inputs, labels=labels).rows(np.arange(_BOUND_NUM_TRAIN, len(data)))
    bounds = bound_by_width(
        train, test, widths=BOUND_WIDTHS, dims=(80,),
        search=search or SearchConfig(nat_weights=(2.0,), num_sweeps=0),
    )  # fmt: skip
    return {
        "num_train": _NUM_TRAIN, "random_labels": _NOISE, "z": _Z,
        "convention": "eigenvalues of features @ features.T / n, so those of the mean loss",
        "rows": rows, "bounds_num_train": _BOUND_NUM_TRAIN, "bounds": bounds,
    }  # fmt: skip


def _random_features(num_features: int, seed: int) -> tuple[float, float]:
    """Return test error on clean labels and effective dimensionality."""
    data, source = shuffled_digits(seed), np.random.default_rng(seed + 100)
    weights = source.normal(size=(data.inputs.shape[1], num_features)) / np.sqrt(data.inputs.shape[1])
    features = np.maximum(data.inputs @ weights + 0.1 * source.normal(size=num_features), 0)
    features *= np.sqrt(2 / num_features)
    labels = replace_labels(data.labels[:_NUM_TRAIN], _NOISE, seed + 1)
    left, sizes, right = np.linalg.svd(features[:_NUM_TRAIN], full_matrices=False)
    kept = sizes > 1e-9 * sizes[0]
    solution = right[kept].T @ ((left[:, kept].T @ one_hot(labels)) / sizes[kept, None])
    eigenvalues = sizes**2 / _NUM_TRAIN
    dimension = float((eigenvalues / (eigenvalues + _Z)).sum())
    return error_rate(features[_NUM_TRAIN:] @ solution, data.labels[_NUM_TRAIN:]), dimension
