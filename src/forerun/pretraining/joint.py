"""The joint limit: for each size the limit in members, then over sizes the limit in parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64
from torch.nn.functional import log_softmax

from forerun.core.errors import ConfigError
from forerun.data.tokens import TokenStream
from forerun.pretraining.ensemble import load_member, open_members
from forerun.pretraining.evaluation import document_starts, held_out_token_nats
from forerun.pretraining.laws import (
    Interval,
    PowerLaw,
    fit_power_law,
    fit_replicates,
    interval_json,
    interval_of,
    leave_one_out,
    reciprocal_limit,
)
from forerun.pretraining.prepared_corpus import PreparedCorpus
from forerun.pretraining.resampling import Resampling
from forerun.pretraining.run_store import Run

PARAMETER_COUNTS: Final = ("without_embeddings", "total")
"""Both ways to count parameters; a law is given in either."""

_FEWEST_FOR_LAW: Final = 3
_MISFIT_SHARE: Final = 0.05


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SizeLaw:
    """A law in the number of parameters, and what is known of its limit.

    Attributes:
        fit: The law of the estimates; ``None`` of fewer than 3 sizes.
        limits: Its limit, the estimate first and then its replicates; ``None`` without a law.
        without_one: The limit without each of the sizes in turn; empty of fewer than 4.
        largest_error: What the law of the smaller sizes predicts for the largest, less what was seen; ``None`` of
            fewer than 4.
        problems: Why the limit is not identified; empty if it is.
    """

    fit: PowerLaw | None
    limits: Float64[np.ndarray, " replicates"] | None
    without_one: tuple[float, ...]
    largest_error: Interval | None
    problems: tuple[str, ...]

    @property
    def is_identified(self) -> bool:
        """Whether the sizes say what the limit is."""
        return not self.problems

    @property
    def limit(self) -> Interval | None:
        """The limit with its interval; worth nothing where it is not identified."""
        return None if self.limits is None else interval_of(self.limits)


def law_in_size(num_params: Sequence[float], losses_RN: Float64[np.ndarray, "replicates sizes"]) -> SizeLaw:
    """Fit a law to the losses of some sizes, and to each of their replicates.

    Args:
        num_params: Of each size, rising.
        losses_RN: The estimates, then their replicates.

    Raises:
        ConfigError: Two sizes have the same number of parameters.
    """
    count = len(num_params)
    if count < _FEWEST_FOR_LAW:
        problem = f"{count} size{'s' if count != 1 else ''} for 3 parameters"
        return SizeLaw(fit=None, limits=None, without_one=(), largest_error=None, problems=(problem,))
    fit = fit_power_law(num_params, losses_RN[0])
    laws_R3 = fit_replicates(num_params, losses_RN)
    laws_R3[0] = fit.asymptote, fit.coefficient, fit.exponent
    limits_R = laws_R3[:, 0]
    problems = [*fit.problems, *_misfits(num_params, losses_RN, laws_R3)]
    if interval_of(limits_R).low <= 0:
        problems.append("the interval of the limit reaches 0")
    without_one: tuple[float, ...] = ()
    largest_error = None
    if count > _FEWEST_FOR_LAW:
        without_one = tuple(law.asymptote for law in leave_one_out(num_params, losses_RN[0].tolist()))
        limit_R, coefficient_R, exponent_R = fit_replicates(num_params[:-1], losses_RN[:, :-1]).T
        largest_error = interval_of(limit_R + coefficient_R * num_params[-1] ** -exponent_R - losses_RN[:, -1])
    return SizeLaw(
        fit=fit, limits=limits_R, without_one=without_one, largest_error=largest_error, problems=tuple(problems)
    )


def _misfits(
    num_params: Sequence[float],
    losses_RN: Float64[np.ndarray, "replicates sizes"],
    laws_R3: Float64[np.ndarray, "replicates 3"],
) -> list[str]:
    """Name sizes that lie off the law by more than their noise and by a share of what the sizes differ by."""
    limit_R, coefficient_R, exponent_R = laws_R3.T
    problems: list[str] = []
    for size, losses_R in zip(num_params, losses_RN.T, strict=True):
        off = interval_of(losses_R - limit_R - coefficient_R * size**-exponent_R)
        if (off.low > 0 or off.high < 0) and abs(off.value) > _MISFIT_SHARE * np.ptp(losses_RN[0]):
            problems.append(f"{size:,.0f} parameters lie {off.value:+.3f} nats off the law")
    return problems


def largest_count_error(curve_RK: Float64[np.ndarray, "replicates members"]) -> Interval | None:
    """Return what the law of fewer members predicts for all of them, less what was seen; ``None`` of 2 or fewer."""
    count = curve_RK.shape[1]
    if count <= 2:
        return None
    limit_R, spread_R = reciprocal_limit(curve_RK[:, :-1]).T
    return interval_of(limit_R + spread_R / count - curve_RK[:, -1])


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleLimit:
    """An ensemble, and the limit in the number of such members.

    Attributes:
        members: Folder of each run.
        num_params: Of a member, by both counts.
        curve: Loss of 1, 2, ... members, the mean over all choices of so many.
        limit: C of C + A / K.
        largest_error: As :func:`largest_count_error` gives it.
    """

    members: tuple[str, ...]
    num_params: dict[str, int]
    curve: tuple[Interval, ...]
    limit: Interval
    largest_error: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JointResult:
    """The joint limit of some ensembles on the tune split.

    Attributes:
        ensembles: By rising size.
        laws: Over sizes, of the limits in members, by the way to count parameters.
        num_documents: Held-out documents.
        num_tokens: Predicted tokens.
    """

    ensembles: tuple[EnsembleLimit, ...]
    laws: dict[str, SizeLaw]
    num_documents: int
    num_tokens: int


def joint_limit(
    ensembles: Sequence[Sequence[Path]],
    corpus: PreparedCorpus,
    *,
    num_replicates: int = 1000,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> JointResult:
    """Take ensembles to the limit in members, each by its own law, and then over sizes to the limit in parameters.

    Documents and members are drawn anew, the same documents for all, through both limits. Settings are usually chosen
    on the tune split, which is what is measured here: the report of a study does the same on its test split.

    Args:
        ensembles: Members of each; one size an ensemble.
        corpus: The corpus that they were trained on.
        num_replicates: Replicates behind an interval.
        seed: Root of the replicates.
        report: Told (members measured, all of them).

    Raises:
        ConfigError: An ensemble has one member or members of two sizes, two have the same size, or they had different
            amounts of text.
        CheckpointError: A run is not finished, or was trained on other data or with another tokenizer.
    """
    opened = sorted(
        (open_members(folders, corpus) for folders in ensembles), key=lambda runs: _num_params(runs[0])["total"]
    )
    _check(opened)
    configs = [run.identity["config"] for runs in opened for run in runs]
    stream, _ = corpus.tune_part(max(int(config["tune_tokens"]) for config in configs))
    width = min(int(config["sequence_tokens"]) for config in configs)
    starts = document_starts(stream)
    resampling = Resampling(np.diff([*starts, len(stream.ids) - 1]).tolist(), num_replicates=num_replicates, seed=seed)
    num_done = 0
    curves: list[np.ndarray] = []
    for runs in opened:
        nats: list[np.ndarray] = []
        for run in runs:
            nats.append(_token_nats(run, stream, width))
            num_done += 1
            report(num_done, len(configs))
        curves.append(resampling.ensemble_curve(np.stack(nats), starts))
    limits_RN = np.stack([reciprocal_limit(curve)[:, 0] for curve in curves], axis=1)
    return JointResult(
        ensembles=tuple(
            EnsembleLimit(
                members=tuple(str(run.folder) for run in runs),
                num_params=_num_params(runs[0]),
                curve=tuple(interval_of(column) for column in curve.T),
                limit=interval_of(limits_R),
                largest_error=largest_count_error(curve),
            )
            for runs, curve, limits_R in zip(opened, curves, limits_RN.T, strict=True)
        ),
        laws={
            count: law_in_size([float(_num_params(runs[0])[count]) for runs in opened], limits_RN)
            for count in PARAMETER_COUNTS
        },
        num_documents=len(starts),
        num_tokens=len(stream.ids) - 1,
    )


def _check(ensembles: Sequence[Sequence[Run]]) -> None:
    for runs in ensembles:
        if len(runs) < 2:
            raise ConfigError(
                f"{runs[0].folder}: is an ensemble of one; a limit in the number of members needs at least 2"
            )
        shapes = [run.identity["config"]["shape"] for run in runs]
        if any(shape != shapes[0] for shape in shapes):
            raise ConfigError(
                f"{runs[0].folder}: its ensemble has members of several sizes; name ensembles of one size"
            )
    sizes = [_num_params(runs[0])["total"] for runs in ensembles]
    for first, second, size, other in zip(ensembles, ensembles[1:], sizes, sizes[1:], strict=False):
        if size == other:
            raise ConfigError(
                f"{first[0].folder} and {second[0].folder}: are of ensembles of the same size, {size:,} parameters; a "
                "law in size takes one of each"
            )
    texts = {_unique_tokens(run) for runs in ensembles for run in runs}
    if len(texts) > 1:
        raise ConfigError(
            f"the runs had {' and '.join(f'{count:,}' for count in sorted(texts))} tokens of text; a law in size takes "
            "runs of the same text"
        )


def _result(run: Run) -> dict[str, Any]:
    result = run.result()
    assert result is not None, "open_members saw to it"
    return result


def _num_params(run: Run) -> dict[str, int]:
    return _result(run)["num_params"]


def _unique_tokens(run: Run) -> int:
    return int(_result(run)["unique_tokens"])


def _token_nats(run: Run, stream: TokenStream, width: int) -> Float32[np.ndarray, " tokens"]:
    decoder = load_member(run)
    return held_out_token_nats(lambda ids_BT: [log_softmax(decoder(ids_BT), dim=-1)], stream, sequence_tokens=width)[0]


def joint_json(result: JointResult) -> dict[str, Any]:
    """Return a result as JSON types."""
    return {
        "ensembles": [
            {
                "members": list(item.members),
                "num_params": item.num_params,
                "curve": [interval_json(interval) for interval in item.curve],
                "limit": interval_json(item.limit),
                "held_out_count": held_out_count_json(item.largest_error, count=len(item.members)),
            }
            for item in result.ensembles
        ],
        "laws": {count: size_law_json(law) for count, law in result.laws.items()},
        "num_documents": result.num_documents,
        "num_tokens": result.num_tokens,
    }


def held_out_count_json(error: Interval | None, *, count: int) -> dict[str, Any] | None:
    """Return how well fewer members predict ``count`` of them, as JSON types."""
    return None if error is None else {"count": count, "predicted_minus_seen": interval_json(error)}


def size_law_json(law: SizeLaw) -> dict[str, Any]:
    """Return a law as JSON types."""
    found: dict[str, Any] = {
        "is_identified": law.is_identified,
        "problems": list(law.problems),
        "fit": None,
        "asymptote": None if law.limit is None else interval_json(law.limit),
        "leave_one_out": list(law.without_one),
        "held_out_largest": None
        if law.largest_error is None
        else {"predicted_minus_seen": interval_json(law.largest_error)},
    }
    if law.fit is not None:
        names = ("asymptote", "coefficient", "exponent", "residual_nats")
        found["fit"] = {name: getattr(law.fit, name) for name in names}
    return found
