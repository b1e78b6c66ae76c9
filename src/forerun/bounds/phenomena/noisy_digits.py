"""Digits with a share of their labels replaced by chance, split for the phenomena."""

import numpy as np
from jaxtyping import Float, Int

from forerun.data.labelled import LabelledData, load_digits

NUM_CLASSES = 10


def shuffled_digits(seed: int) -> LabelledData:
    """Return the digits scaled to 0 to 1, in an order that the seed decides."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data))
    return LabelledData(inputs=data.inputs[order] / 16, labels=data.labels[order])


def replace_labels(labels: Int[np.ndarray, " n"], share: float, seed: int) -> Int[np.ndarray, " n"]:
    """Return labels of which a share, chosen at random, is drawn anew; a new one may equal the old.

    Args:
        labels: From 0 to 9.
        share: 0 to 1.
        seed: Of the choice and the draws.
    """
    source = np.random.default_rng(seed)
    return np.where(source.random(len(labels)) < share, source.integers(0, NUM_CLASSES, len(labels)), labels)


def one_hot(labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n classes"]:
    """Return rows of zeros with a one, centred."""
    return np.eye(NUM_CLASSES)[labels] - 1 / NUM_CLASSES


def error_rate(scores: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> float:
    """Return the share of rows whose largest score is not the label's."""
    return float((scores.argmax(axis=1) != labels).mean())
