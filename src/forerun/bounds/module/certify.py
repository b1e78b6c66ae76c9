"""Certify a module: search messages in its subspaces, decode and measure them elsewhere, keep the least bound."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from forerun.bounds.message import encode_point
from forerun.bounds.module import verifier
from forerun.bounds.module.evaluation import build_subspace, independent_scores
from forerun.bounds.module.factory import build_module, load_factory
from forerun.bounds.module.task import ModuleTask
from forerun.bounds.pac_bayes import complexity_nats
from forerun.bounds.problem import Problem
from forerun.bounds.result import CertifyResult
from forerun.bounds.search import LARGE_SEARCH, SearchConfig, search_points
from forerun.bounds.selection import affordable_line, certify_best, require_affordable
from forerun.bounds.verifier import MAGNITUDE_BITS
from forerun.core.errors import ConfigError
from forerun.nn.projections.build import ProjectionName
from forerun.nn.subspace_module import ModuleSubspace

TASK: Final = "module"
_NUM_PROBED: Final = 640
_LARGE: Final = 10_000
_SMALL_SEARCH: Final = SearchConfig(nat_weights=(2.0,))
_FIXED: Final = {
    "factory": "its source files are named in the grid by digest; it must not depend on the data",
    "buffers": "those of the start, fixed; statistics of the data are refused",
    "scales": "a parameter moves by its size at the start; other scales are the codebook's",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleCandidate:
    """One choice from the grid to train; choosing the best of several is paid in the message.

    Attributes:
        projection: From coefficients to trained values.
        dim: Coefficients.
        levels: Quantisation levels.
        seed: Of start and projection.
        search: How to look for messages; ``None``: by the number of examples.
    """

    projection: ProjectionName = "dense"
    dim: int = 160
    levels: int = 5
    seed: int = 0
    search: SearchConfig | None = None


def certify_module(
    task: ModuleTask,
    path: Path,
    *,
    delta: float = 0.05,
    candidates: tuple[ModuleCandidate, ...] = (ModuleCandidate(),),
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
        ConfigError: delta, the candidates, the module or the size of the data are unusable.
        CertificateError: The verifier does not confirm what was written.
    """
    if not candidates:
        raise ConfigError("candidates=(): give at least one")
    for candidate in candidates:
        _check_candidate(task, candidate)
    needed = min(_header_bits(task, candidate) + candidate.dim for candidate in candidates)
    bits = require_affordable(
        needed_bits=needed, num_classes=task.grid.num_classes, num_samples=len(task.train), delta=delta
    )
    report(affordable_line(bits))
    start = "drawn by the factory from the seed" + (
        "" if task.base is None else ", then tensors of an independent base"
    )
    problem = Problem(
        name=TASK,
        grid=task.grid,
        train=task.train,
        holdout=task.holdout,
        kind=verifier.module_kind(task.grid.factory, task.base),
        program=verifier.__name__,
        options=(f"--module={task.grid.factory}", *(() if task.base is None else (f"--base={task.base}",))),
        fixed={**_FIXED, "start": start},
    )
    return certify_best(problem, _messages(task, candidates, delta=delta), path, delta=delta, report=report)


def _check_candidate(task: ModuleTask, candidate: ModuleCandidate) -> None:
    grid = task.grid
    for name, value, options in (
        ("projection", candidate.projection, grid.projections),
        ("dim", candidate.dim, grid.subspace_dims),
        ("levels", candidate.levels, grid.levels),
        ("seed", candidate.seed, grid.seeds),
    ):
        if value not in options:
            raise ConfigError(
                f"{name}={value}: must be {', '.join(map(str, options))}; the module trains {grid.num_values} values"
            )


def _header_bits(task: ModuleTask, candidate: ModuleCandidate) -> float:
    """Return what choices and codebook cost, whichever they are."""
    grid = task.grid
    num_choices = math.prod(map(len, (grid.projections, grid.subspace_dims, grid.levels, grid.seeds)))
    return math.log2(num_choices) + MAGNITUDE_BITS * (candidate.levels // 2)


def _messages(
    task: ModuleTask, candidates: tuple[ModuleCandidate, ...], *, delta: float
) -> Iterator[tuple[str, bytes]]:
    """Yield what the search of each candidate ends with."""
    grid, train = task.grid, task.train
    inputs = torch.from_numpy(train.inputs).float().view(-1, *grid.input_shape)
    labels = torch.from_numpy(train.labels)
    for candidate in candidates:
        network = _open_network(task, candidate)
        points = search_points(
            network,
            inputs,
            labels,
            levels=candidate.levels,
            other_nats=complexity_nats(code_length_bits=_header_bits(task, candidate), delta=delta),
            config=candidate.search or (LARGE_SEARCH if len(train) > _LARGE else _SMALL_SEARCH),
        )
        choices = (
            (candidate.projection, grid.projections),
            (candidate.dim, grid.subspace_dims),
            (candidate.levels, grid.levels),
            (candidate.seed, grid.seeds),
        )
        for point in points:
            yield (
                f"{candidate.projection}, dimension {candidate.dim}, {candidate.levels} levels, seed {candidate.seed}",
                encode_point(point, choices, [0] * candidate.dim),
            )


def _open_network(task: ModuleTask, candidate: ModuleCandidate) -> ModuleSubspace:
    """Return the subspace in float32, after a look at what the module says at its start."""
    grid = task.grid
    module = build_module(load_factory(grid.factory), candidate.seed, base=task.base)
    network = build_subspace(module, projection=candidate.projection, dim=candidate.dim, seed=candidate.seed)
    start = torch.zeros(candidate.dim, dtype=torch.float64).numpy()
    try:
        independent_scores(
            network.double(), start, task.train.inputs[:_NUM_PROBED],
            input_shape=grid.input_shape, num_classes=grid.num_classes,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"factory={grid.factory!r}: {error}; change the module") from error
    return network.float()
