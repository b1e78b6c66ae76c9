"""What a certificate of a classifier says, and what stands beside it."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from forerun.bounds.ledger import LedgerLine, ledger_lines
from forerun.bounds.pac_bayes import RiskBounds, holdout_bound, risk_bounds
from forerun.bounds.problem import ErrorsOf, Problem
from forerun.bounds.verifier import LINES
from forerun.data.labelled import LabelledData

_CLAIMED: Final = ("num_errors", "num_samples", "code_length_bits", "risk_bound", "is_vacuous")
_MESSAGE_LINES: Final = (*LINES, "codebook", "symbols")


@dataclass(frozen=True, kw_only=True, slots=True)
class CertifyResult:
    """What a certificate says, and what stands beside it.

    Attributes:
        num_errors: Of the decoded classifier on the training data.
        num_samples: n.
        empirical_risk: Their ratio.
        code_length_bits: -log2 of the message's probability.
        message_bytes: Size of the coded message.
        delta: Failure probability.
        bounds: Every bound.
        risk_bound: The tightest.
        chance: Error of guessing among equally likely classes.
        is_vacuous: Whether the bound says no more than chance.
        holdout: Errors, examples, risk and bound on the hold-out, a separate statement with the same delta; or None.
        ledger: Every cost.
        choices: What the message chose from the grid.
        grid_sha256: Digest of the grid.
    """

    num_errors: int
    num_samples: int
    empirical_risk: float
    code_length_bits: float
    message_bytes: int
    delta: float
    bounds: RiskBounds
    risk_bound: float
    chance: float
    is_vacuous: bool
    holdout: dict[str, Any] | None
    ledger: tuple[LedgerLine, ...]
    choices: dict[str, Any]
    grid_sha256: str

    def as_json(self) -> dict[str, Any]:
        """Return every number."""
        return asdict(self)

    def claims(self) -> dict[str, Any]:
        """Return what the manifest claims, for the verifier to compare."""
        ledger = {line.name: line.bits for line in self.ledger if line.name in _MESSAGE_LINES}
        return {**{name: getattr(self, name) for name in _CLAIMED}, "ledger_bits": ledger}


@dataclass(frozen=True, kw_only=True, slots=True)
class Certified:
    """A certificate that was just written.

    Attributes:
        name: Of the problem.
        result: What it says.
        train: What it is about.
        errors_of: How its classifier's errors are found.
        verify_options: What ``forerun verify`` needs beside the file.
    """

    name: str
    result: CertifyResult
    train: LabelledData
    errors_of: ErrorsOf
    verify_options: str


def bound_message(problem: Problem, code: bytes, found: dict[str, Any], *, delta: float) -> CertifyResult:
    """Return the bounds of a message.

    Args:
        problem: What it is about.
        code: The message.
        found: What the verifier measured in a process of its own.
        delta: Failure probability.
    """
    num_errors, num_samples = found["num_errors"], found["num_samples"]
    bounds = risk_bounds(
        num_errors=num_errors, num_samples=num_samples, code_length_bits=found["code_length_bits"], delta=delta
    )
    chance = 1 - 1 / problem.grid.num_classes
    return CertifyResult(
        num_errors=num_errors,
        num_samples=num_samples,
        empirical_risk=num_errors / num_samples,
        code_length_bits=found["code_length_bits"],
        message_bytes=len(code),
        delta=delta,
        bounds=bounds,
        risk_bound=bounds.binomial,
        chance=chance,
        is_vacuous=bounds.binomial >= chance,
        holdout=_holdout(problem, found, delta=delta),
        ledger=ledger_lines(found["ledger_bits"], delta=delta, fixed=problem.fixed),
        choices=found["choices"],
        grid_sha256=problem.grid.sha256,
    )


def _holdout(problem: Problem, found: dict[str, Any], *, delta: float) -> dict[str, Any] | None:
    """Bound the risk from the examples that training never saw."""
    data = problem.holdout
    if data is None:
        return None
    errors_of = problem.kind[2]
    coefficients = np.array(found["coefficients"])
    wrong = errors_of(found["choices"], coefficients, data.inputs, data.labels, problem.grid.as_json())
    num_errors, num_samples = int(wrong.sum()), len(data)
    return {
        "num_errors": num_errors,
        "num_samples": num_samples,
        "empirical_risk": num_errors / num_samples,
        "risk_bound": holdout_bound(num_errors=num_errors, num_samples=num_samples, delta=delta),
    }
