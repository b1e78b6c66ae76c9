"""Certify: search for a short message with few errors, decode it elsewhere, measure, bound, write, verify."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from forerun.bounds import verifier
from forerun.bounds.certificate import new_manifest, run_verifier, write_certificate
from forerun.bounds.ledger import LedgerLine, ledger_lines
from forerun.bounds.message import encode_message
from forerun.bounds.pac_bayes import RiskBounds, affordable_bits, complexity_nats, holdout_bound, risk_bounds
from forerun.bounds.prior import PriorGrid, build_network, num_readout_values, prepare_inputs
from forerun.bounds.readout import READOUT_LEVELS, ReadoutConfig, search_readout
from forerun.bounds.search import SearchConfig, search_messages
from forerun.bounds.task import Task
from forerun.bounds.verifier import MAGNITUDE_BITS, MIN_SYMBOLS
from forerun.core.errors import CertificateError, ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One choice from the grid to train; choosing the best of several is paid in the message.

    Attributes:
        dim: Coefficients.
        levels: Quantisation levels.
        architecture: Place among the grid's architectures.
        seed: Of start and projection.
        search: How to look for messages.
        readout: The same, for architectures of cells.
    """

    dim: int
    levels: int
    architecture: int = 0
    seed: int = 0
    search: SearchConfig = field(default_factory=SearchConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)


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


_LARGE: Final = SearchConfig(
    num_steps=1200, batch_size=500, learning_rate=0.1, square_penalty=0.01,
    nat_weights=(2.0,), num_rounding_samples=4000, num_sweeps=0,
)  # fmt: skip
_ARRAYS_CANDIDATES: Final = (Candidate(dim=160, levels=5),)
_CANDIDATES: Final = {
    "digits": tuple(
        Candidate(dim=160, levels=5, architecture=4, seed=seed, search=SearchConfig(nat_weights=(2.0,)))
        for seed in (0, 1)
    ),
    "mnist1d": (Candidate(dim=300, levels=5, search=_LARGE),),
    "fashion-mnist": (Candidate(dim=2950, levels=5, architecture=8),),
}


def default_candidates(task: str) -> tuple[Candidate, ...]:
    """Return the points of the grid that ``forerun certify`` tries for a task, by its name."""
    return _CANDIDATES.get(task, _ARRAYS_CANDIDATES)


def check_affordable(
    grid: PriorGrid, candidates: tuple[Candidate, ...], *, num_samples: int, delta: float
) -> tuple[float, float]:
    """Find out before training whether any bound can come out below chance.

    Args:
        grid: The prior.
        candidates: What will be tried; a coefficient is taken to cost at least a bit, behind cells nothing.
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
    needed = min(_header_bits(grid, levels=item.levels) + _least_symbol_bits(grid, item) for item in candidates)
    if without_errors < needed:
        raise ConfigError(
            f"num_train={num_samples}: too few for a bound below chance ({chance:.3g}) at delta={delta:g}: with no "
            f"errors a classifier may take {max(without_errors, 0):.0f} bits, and the smallest that would be tried "
            f"takes over {needed:.0f}; give more data"
        )
    return without_errors, with_errors


def _least_symbol_bits(grid: PriorGrid, candidate: Candidate) -> int:
    cells = any(layer.kind == "cells" for layer in grid.architectures[candidate.architecture])
    return MIN_SYMBOLS if cells else candidate.dim


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
    candidates = default_candidates(task.name) if candidates is None else candidates
    bits = check_affordable(task.grid, candidates, num_samples=len(task.train), delta=delta)
    report(f"affordable for a bound below chance: {bits[0]:.0f} bits without errors, {bits[1]:.0f} with 10% errors")
    best: tuple[CertifyResult, bytes] | None = None
    for candidate in candidates:
        for code in _find_messages(task, candidate, delta=delta):
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


def _find_messages(task: Task, candidate: Candidate, *, delta: float) -> list[bytes]:
    """Return the coded messages that one candidate's search ends with."""
    grid = task.grid
    if (
        candidate.dim not in grid.subspace_dims
        or candidate.levels not in grid.levels
        or candidate.seed not in grid.seeds
    ):
        raise ConfigError(
            f"dim={candidate.dim}, levels={candidate.levels}, seed={candidate.seed}: the grid has "
            f"{grid.subspace_dims}, {grid.levels} and {grid.seeds}"
        )
    architecture = grid.architectures[candidate.architecture]
    other_nats = complexity_nats(code_length_bits=_header_bits(grid, levels=candidate.levels), delta=delta)
    inputs, labels = prepare_inputs(grid, architecture, task.train.inputs), torch.from_numpy(task.train.labels)
    if any(layer.kind == "cells" for layer in architecture):
        needed = num_readout_values(grid, architecture)
        if (candidate.dim, candidate.levels) != (needed, READOUT_LEVELS):
            raise ConfigError(
                f"dim={candidate.dim}, levels={candidate.levels}: these cells need {needed} and {READOUT_LEVELS}"
            )
        message = search_readout(
            grid, inputs, labels,
            architecture=architecture, seed=candidate.seed, other_nats=other_nats, config=candidate.readout,
        )  # fmt: skip
        return [encode_message(message, grid)]
    messages = search_messages(
        build_network(grid, architecture=architecture, dim=candidate.dim, seed=candidate.seed),
        inputs,
        labels,
        architecture=architecture,
        levels=candidate.levels,
        seed=candidate.seed,
        other_nats=other_nats,
        config=candidate.search,
    )
    return [encode_message(message, grid) for message in dict.fromkeys(messages)]


def _header_bits(grid: PriorGrid, *, levels: int) -> float:
    """Return what choices and codebook cost, whichever they are."""
    num_choices = math.prod(map(len, (grid.architectures, grid.subspace_dims, grid.levels, grid.seeds)))
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
    coefficients = np.array(found["coefficients"])
    layers = verifier.build_layers(found["choices"], coefficients, grid.input_shape, grid.num_classes)
    wrong = verifier.count_errors(layers, task.holdout.inputs, task.holdout.labels, grid.as_json())
    num_errors, num_samples = int(wrong.sum()), len(task.holdout)
    return {
        "num_errors": num_errors,
        "num_samples": num_samples,
        "empirical_risk": num_errors / num_samples,
        "risk_bound": holdout_bound(num_errors=num_errors, num_samples=num_samples, delta=delta),
    }
