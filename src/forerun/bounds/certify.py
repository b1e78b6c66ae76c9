"""Certify: search for a short message with few errors, decode it elsewhere, measure, bound, write, verify."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forerun.bounds import verifier
from forerun.bounds.certificate import new_manifest, run_verifier, write_certificate
from forerun.bounds.ledger import LedgerLine, ledger_lines
from forerun.bounds.message import Message, encode_message
from forerun.bounds.pac_bayes import RiskBounds, affordable_bits, complexity_nats, holdout_bound, risk_bounds
from forerun.bounds.prior import PriorGrid, build_network
from forerun.bounds.quantize import QuantizedSubspace, SearchConfig, search
from forerun.bounds.refine import refine
from forerun.bounds.task import Task
from forerun.bounds.verifier import MAGNITUDE_BITS
from forerun.core.errors import CertificateError, ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One choice from the grid to train; choosing the best of several is paid in the message.

    Attributes:
        dim: Coefficients.
        levels: Quantisation levels.
        search: How to train.
    """

    dim: int
    levels: int
    search: SearchConfig


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


def default_candidates() -> tuple[Candidate, ...]:
    """Return what :func:`certify` tries: one point of the grid, found with two weights of the message's length."""
    return tuple(Candidate(dim=160, levels=5, search=SearchConfig(rate_weight=weight)) for weight in (2.0, 3.0))


def check_affordable(
    grid: PriorGrid, candidates: tuple[Candidate, ...], *, num_samples: int, delta: float
) -> tuple[float, float]:
    """Find out before training whether any bound can come out below chance.

    Args:
        grid: The prior.
        candidates: What will be tried; a coefficient is taken to cost at least a bit.
        num_samples: n.
        delta: Failure probability.

    Returns:
        The bits with which a classifier just reaches chance: without training errors, and with 10%.

    Raises:
        ConfigError: delta is out of range, there is no candidate, or none is short enough.
    """
    complexity_nats(code_length_bits=0.0, delta=delta)
    if not candidates:
        raise ConfigError("candidates=(): give at least one")
    chance = 1 - 1 / grid.num_classes
    without_errors, with_errors = (
        affordable_bits(target_risk=chance, empirical_risk=risk, num_samples=num_samples, delta=delta)
        for risk in (0.0, 0.1)
    )
    needed = min(_header_bits(grid, levels=item.levels) + item.dim for item in candidates)
    if without_errors < needed:
        raise ConfigError(
            f"num_train={num_samples}: too few for a bound below chance ({chance:.3g}) at delta={delta:g}: with no "
            f"errors a classifier may take {max(without_errors, 0):.0f} bits, and the smallest that would be tried "
            f"takes over {needed:.0f}; give more data"
        )
    return without_errors, with_errors


def certify(
    task: Task,
    path: Path,
    *,
    delta: float = 0.05,
    candidates: tuple[Candidate, ...] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> CertifyResult:
    """Train, certify and write ``path``.

    Args:
        task: The problem.
        path: The certificate to write.
        delta: Failure probability.
        candidates: What to try; the best bound is kept.
        report: Told a line about each candidate.

    Returns:
        The numbers, all measured by the verifier in a process of its own.

    Raises:
        ConfigError: delta, the candidates or the size of the data are unusable.
        CertificateError: The verifier does not confirm what was written.
    """
    candidates = default_candidates() if candidates is None else candidates
    bits = check_affordable(task.grid, candidates, num_samples=len(task.train), delta=delta)
    report(f"affordable for a bound below chance: {bits[0]:.0f} bits without errors, {bits[1]:.0f} with 10% errors")
    best: tuple[CertifyResult, bytes] | None = None
    for candidate in candidates:
        code = encode_message(_train(task, candidate, delta=delta), task.grid)
        result = _measure(task, code, delta=delta)
        report(
            f"dimension {candidate.dim}, {candidate.levels} levels: {result.empirical_risk:.1%} training error, "
            f"{result.code_length_bits:.0f} bits, bound {result.risk_bound:.1%}"
        )
        if best is None or result.risk_bound < best[0].risk_bound:
            best = result, code
    assert best is not None, "there is at least one candidate"
    result, code = best
    manifest = new_manifest(task=task.name, grid=task.grid, train=task.train, delta=delta, message=code)
    manifest["claims"] = {
        **{
            name: getattr(result, name)
            for name in ("num_errors", "num_samples", "code_length_bits", "risk_bound", "is_vacuous")
        },
        "ledger_bits": {line.name: line.bits for line in result.ledger if line.name in _MESSAGE_LINES},
    }
    manifest["beside"] = {"bounds": asdict(result.bounds), "holdout": result.holdout}
    write_certificate(path, manifest, code)
    answer = run_verifier(path, task.train, [f"--grid-sha256={task.grid.sha256}"])
    if not answer["accepted"]:
        raise CertificateError(f"{path}: the verifier rejects it: {answer['reason']}; this is a fault of Forerun")
    return result


_MESSAGE_LINES = ("architecture", "dimension", "levels", "seed", "codebook", "symbols")


def _train(task: Task, candidate: Candidate, *, delta: float) -> Message:
    """Return the message that one candidate's training ends with."""
    grid = task.grid
    if candidate.dim not in grid.subspace_dims or candidate.levels not in grid.levels:
        raise ConfigError(
            f"dim={candidate.dim}, levels={candidate.levels}: the grid has {grid.subspace_dims} and {grid.levels}"
        )
    widths, seed = grid.hidden_widths[0], grid.seeds[0]
    network = build_network(grid, hidden_widths=widths, dim=candidate.dim, seed=seed)
    inputs = torch.from_numpy(task.train.inputs * grid.input_scale).float()
    labels = torch.from_numpy(task.train.labels)
    model: QuantizedSubspace = search(network, inputs, labels, levels=candidate.levels, config=candidate.search)
    message = Message(
        hidden_widths=widths,
        levels=candidate.levels,
        seed=seed,
        magnitude_steps=tuple(model.magnitude_steps()),
        symbols=tuple(model.symbols().tolist()),
    )
    header_bits = _header_bits(grid, levels=candidate.levels)
    other_nats = complexity_nats(code_length_bits=header_bits, delta=delta)
    return refine(network, inputs, labels, message, other_nats=other_nats, max_sweeps=candidate.search.num_sweeps)


def _header_bits(grid: PriorGrid, *, levels: int) -> float:
    """Return what choices and codebook cost, whichever they are."""
    num_choices = math.prod(map(len, (grid.hidden_widths, grid.subspace_dims, grid.levels, grid.seeds)))
    return math.log2(num_choices) + MAGNITUDE_BITS * (levels // 2)


def _measure(task: Task, code: bytes, *, delta: float) -> CertifyResult:
    """Have the message decoded in a fresh process, and bound what it finds."""
    manifest = new_manifest(task=task.name, grid=task.grid, train=task.train, delta=delta, message=code)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.zip"
        write_certificate(draft, manifest, code)
        found = run_verifier(draft, task.train, ["--measure"])
    if not found["accepted"]:
        raise CertificateError(f"the verifier can't measure the message: {found['reason']}")
    bounds = risk_bounds(
        num_errors=found["num_errors"],
        num_samples=found["num_samples"],
        code_length_bits=found["code_length_bits"],
        delta=delta,
    )
    chance = 1 - 1 / task.grid.num_classes
    return CertifyResult(
        num_errors=found["num_errors"],
        num_samples=found["num_samples"],
        empirical_risk=found["num_errors"] / found["num_samples"],
        code_length_bits=found["code_length_bits"],
        message_bytes=len(code),
        delta=delta,
        bounds=bounds,
        risk_bound=bounds.binomial,
        chance=chance,
        is_vacuous=bounds.binomial >= chance,
        holdout=_holdout(task, found, delta=delta),
        ledger=ledger_lines(found["ledger_bits"], delta=delta),
        choices=found["choices"],
        grid_sha256=task.grid.sha256,
    )


def _holdout(task: Task, found: dict[str, Any], *, delta: float) -> dict[str, Any] | None:
    """Bound the risk from the examples that training never saw."""
    if task.holdout is None:
        return None
    grid = task.grid
    layers = verifier.build_layers(found["choices"], np.array(found["coefficients"]), grid.num_inputs, grid.num_classes)
    wrong = verifier.find_errors(layers, task.holdout.inputs * grid.input_scale, task.holdout.labels)
    num_errors, num_samples = int(wrong.sum()), len(task.holdout)
    return {
        "num_errors": num_errors,
        "num_samples": num_samples,
        "empirical_risk": num_errors / num_samples,
        "risk_bound": holdout_bound(num_errors=num_errors, num_samples=num_samples, delta=delta),
    }
