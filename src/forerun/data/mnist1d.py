"""MNIST-1D as independent draws: ten short curves, placed, stretched, sheared and drowned in smooth noise.

The generator's curves and constants are those of the public data set; what differs is that classes are drawn at random
(the original has the same number of each) and that values are scaled by a fixed constant (the original divides by the
standard deviation of training and test data together), so that examples are independent.

Reference:
    Greydanus, Kobak, "Scaling Down Deep Learning with MNIST-1D", ICML 2024, arXiv 2011.14439, and its package
    ``mnist1d`` 0.0.2.
"""

from typing import Final

import numpy as np
from jaxtyping import Float

from forerun.data.labelled import LabelledData

NUM_FEATURES: Final = 40
VALUE_SCALE: Final = 6.0
"""Fixed; brings the values' standard deviation near 1."""

_CURVES: Final = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
_LENGTH: Final = 72
_LEAST_PADDING, _MOST_PADDING = 36, 60
_MOST_SHIFT: Final = 48
_SCALE_SPREAD: Final = 0.4
_SMOOTH_NOISE, _WHITE_NOISE, _SHEAR = 0.25, 0.02, 0.75
_SMOOTHING: Final = 2.0
_PRESENT: Final = 1e-8


def sample_mnist1d(num_samples: int, seed: int) -> LabelledData:
    """Draw examples [num_samples, 40], independent of each other, classes included.

    Args:
        num_samples: How many.
        seed: Of everything.
    """
    source = np.random.default_rng(seed)
    labels = source.integers(0, len(_CURVES), num_samples)
    paddings = source.integers(0, _MOST_PADDING - _LEAST_PADDING + 1, num_samples)
    signal = _padded_curves()[labels, paddings]
    signal *= 1 + _SCALE_SPREAD * (source.random((num_samples, 1)) - 0.5)
    shifts = source.integers(0, _MOST_SHIFT, (num_samples, 1))
    signal = np.take_along_axis(signal, (np.arange(_LENGTH) - shifts) % _LENGTH, axis=1)
    smooth = _SMOOTH_NOISE * source.normal(size=signal.shape) @ _smoothing_matrix().T
    signal = np.where(signal != 0, signal, smooth) + _WHITE_NOISE * source.normal(size=signal.shape)
    signal -= _SHEAR * (source.random((num_samples, 1)) - 0.5) * np.linspace(-0.5, 0.5, _LENGTH)
    inputs = signal @ _interpolation_matrix(_LENGTH, NUM_FEATURES).T * VALUE_SCALE
    return LabelledData(inputs=inputs, labels=labels)


def _padded_curves() -> Float[np.ndarray, "classes paddings length"]:
    """Return each curve with each padding, stretched to the common length; zero only where it is padding."""
    curves = np.array(_CURVES, dtype=np.float64)
    curves = (curves - curves.mean(axis=1, keepdims=True)) / curves.std(axis=1, keepdims=True)
    curves = (curves - curves[:, :1]) / 6 + _PRESENT
    padded = []
    for padding in range(_LEAST_PADDING, _MOST_PADDING + 1):
        whole = np.concatenate([curves, np.zeros((len(curves), padding))], axis=1)
        padded.append(whole @ _interpolation_matrix(whole.shape[1], _LENGTH).T)
    return np.stack(padded, axis=1)


def _interpolation_matrix(num_before: int, num_after: int) -> Float[np.ndarray, "after before"]:
    """Return the matrix of linear interpolation between evenly spaced points."""
    places = np.linspace(0, num_before - 1, num_after)
    return np.stack([np.interp(places, np.arange(num_before), row) for row in np.eye(num_before)], axis=1)


def _smoothing_matrix() -> Float[np.ndarray, "length length"]:
    """Return a Gaussian filter, cut at four standard deviations, with reflection at the ends."""
    radius = int(4 * _SMOOTHING)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / _SMOOTHING) ** 2)
    matrix = np.zeros((_LENGTH, _LENGTH))
    for row in range(_LENGTH):
        for offset, weight in zip(range(-radius, radius + 1), weights / weights.sum(), strict=True):
            place = row + offset
            place = -1 - place if place < 0 else 2 * _LENGTH - 1 - place if place >= _LENGTH else place
            matrix[row, place] += weight
    return matrix
