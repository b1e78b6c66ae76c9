"""What all certificates of classifiers have in common, whatever computes the classifier."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from forerun.data.labelled import LabelledData

ErrorsOf = Callable[
    [
        dict[str, Any],
        Float[np.ndarray, " dim"],
        Float[np.ndarray, "n features"],
        Int[np.ndarray, " n"],
        Mapping[str, Any],
    ],
    Bool[np.ndarray, " n"],
]
"""Tells which examples a decoded classifier gets wrong, from choices, coefficients, inputs, labels and the grid."""

CertificateKind = tuple[str, int, ErrorsOf]
"""Format and version of a certificate, and how its classifier's errors are found."""


class Grid(Protocol):
    """A prior, fixed before the data."""

    @property
    def num_classes(self) -> int:
        """Classes, at least 2."""
        ...

    @property
    def sha256(self) -> str:
        """Digest to publish before the data are seen."""
        ...

    def as_json(self) -> dict[str, Any]:
        """Return the grid as it stands in a certificate."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is to be certified, and who checks it.

    Attributes:
        name: Of the task, in the manifest.
        grid: The prior.
        train: What the certificate is about.
        holdout: Never seen by training; ``None`` where there is none.
        kind: Of the certificate.
        program: Of the verifier, as :func:`~forerun.bounds.certificate.ask_verifier` takes it.
        options: That it needs beside the files.
        fixed: Lines of the ledger that cost nothing, by name, with the reason, beside or in place of the usual ones.
    """

    name: str
    grid: Grid
    train: LabelledData
    holdout: LabelledData | None
    kind: CertificateKind
    program: str
    options: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict[str, str])
