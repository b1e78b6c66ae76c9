"""Certify: search for a short message with few errors, decode it elsewhere, measure, bound, write, verify."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from forerun.bounds import verifier
from forerun.bounds.message import encode_message
from forerun.bounds.pac_bayes import complexity_nats
from forerun.bounds.prior import PriorGrid, build_network, num_readout_values, prepare_inputs
from forerun.bounds.problem import Problem
from forerun.bounds.readout import READOUT_LEVELS, ReadoutConfig, search_readout
from forerun.bounds.result import CertifyResult
from forerun.bounds.search import LARGE_SEARCH, SearchConfig, search_messages
from forerun.bounds.selection import affordable_line, certify_best, require_affordable
from forerun.bounds.task import Task
from forerun.bounds.verifier import MAGNITUDE_BITS, MIN_SYMBOLS
from forerun.core.errors import ConfigError


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


_ARRAYS_CANDIDATES: Final = (Candidate(dim=160, levels=5),)
_CANDIDATES: Final = {
    "digits": tuple(
        Candidate(dim=160, levels=5, architecture=4, seed=seed, search=SearchConfig(nat_weights=(2.0,)))
        for seed in (0, 1)
    ),
    "mnist1d": (Candidate(dim=300, levels=5, search=LARGE_SEARCH),),
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
    if not candidates:
        raise ConfigError("candidates=(): give at least one")
    needed = min(_header_bits(grid, levels=item.levels) + _least_symbol_bits(grid, item) for item in candidates)
    return require_affordable(needed_bits=needed, num_classes=grid.num_classes, num_samples=num_samples, delta=delta)


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
    report(affordable_line(check_affordable(task.grid, candidates, num_samples=len(task.train), delta=delta)))
    problem = Problem(
        name=task.name, grid=task.grid, train=task.train, holdout=task.holdout,
        kind=verifier.CLASSIFIER, program=verifier.__file__,
    )  # fmt: skip
    messages = (
        (f"dimension {candidate.dim}, {candidate.levels} levels", code)
        for candidate in candidates
        for code in _find_messages(task, candidate, delta=delta)
    )
    return certify_best(problem, messages, path, delta=delta, report=report)


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
    return [encode_message(message, grid) for message in messages]


def _header_bits(grid: PriorGrid, *, levels: int) -> float:
    """Return what choices and codebook cost, whichever they are."""
    num_choices = math.prod(map(len, (grid.architectures, grid.subspace_dims, grid.levels, grid.seeds)))
    return math.log2(num_choices) + MAGNITUDE_BITS * (levels // 2)
