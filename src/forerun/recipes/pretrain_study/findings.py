"""From losses on the test split to what a report says: points, laws, multipliers and claims, each with its interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from forerun.pretraining.efficiency import Multiplier, data_multiplier
from forerun.pretraining.laws import (
    PowerLaw,
    fit_power_law,
    fit_replicates,
    interval_of,
    leave_one_out,
    reciprocal_limit,
)
from forerun.pretraining.resampling import Resampling
from forerun.recipes.pretrain_study.claims import (
    Claim,
    above,
    below,
    claim_of,
    interval_json,
    more_than,
    verdict_of,
)
from forerun.recipes.pretrain_study.measure import Measurements
from forerun.recipes.pretrain_study.study_file import EnsembleOfSize, Student, Study, TunedSize

PARAMETER_COUNTS: Final = ("without_embeddings", "total")
_FEWEST_FOR_LAW: Final = 3

Replicates = np.ndarray
"""An estimate and its replicates."""


def find(study: Study, measured: Measurements) -> dict[str, Any]:
    """Return everything a report says, as JSON types."""
    return _Finder(study, measured).all()


class _Finder:
    def __init__(self, study: Study, measured: Measurements) -> None:
        self._study, self._measured = study, measured
        self._resampling = Resampling(
            measured.document_tokens, num_replicates=int(study.scale["num_replicates"]), seed=0
        )
        self._standard = {item.size: self._tuned(item) for item in study.standard}
        self._regularised = {item.size: self._tuned(item) for item in study.regularised}
        self._curves = {
            item.size: self._resampling.ensemble_curve(
                np.stack([measured.token_nats[name] for name in item.members]), measured.document_starts
            )
            for item in study.ensembles
        }
        self._limits = {size: reciprocal_limit(curve)[:, 0] for size, curve in self._curves.items()}
        self._best_single = min(study.regularised, key=_tune_loss)
        self._best_standard = min(study.standard, key=_tune_loss)
        self._best_ensemble = min(study.ensembles, key=lambda item: item.tune_loss_nats)
        self._joint = self._law(self._limits)

    def all(self) -> dict[str, Any]:
        """Return everything."""
        study, measured = self._study, self._measured
        return {
            "study": {
                "scale": study.scale,
                "corpus": study.corpus,
                "data_sha256": study.data_sha256,
                "num_runs": study.num_runs,
                "elapsed_s": study.elapsed_s,
                "machine": study.machine,
            },
            "test": {
                "opened_at": list(measured.opened_at),
                "num_documents": len(measured.document_starts),
                "num_tokens": sum(measured.document_tokens),
                "num_bytes": measured.num_bytes,
            },
            "claims": [asdict(claim) for claim in self._claims()],
            "standard": [self._tuned_point(item, self._standard[item.size]) for item in study.standard],
            "regularised": [self._tuned_point(item, self._regularised[item.size]) for item in study.regularised],
            "more_text": [self._tuned_point(item, self._tuned(item)) for item in study.more_text],
            "ensembles": [self._ensemble_point(item) for item in study.ensembles],
            "students": [self._student_point(item) for item in study.students],
            "laws": {"regularised": self._law(self._regularised), "joint": self._joint},
            "efficiency": {name: _multiplier_json(item) for name, item in self._multipliers().items()},
            "runs": {name: self._run_json(name) for name in study.all_runs()},
        }

    def _tuned(self, item: TunedSize) -> Replicates:
        return self._resampling.seed_mean([self._measured.document_nats(name) for name in item.runs])

    def _run_loss(self, name: str) -> Replicates:
        return self._resampling.loss(self._measured.document_nats(name))

    def _num_params(self, run: str) -> dict[str, int]:
        return self._measured.results[run]["num_params"]

    def _size_params(self, size: str, count: str) -> int:
        item = next(item for item in self._study.regularised if item.size == size)
        return self._num_params(item.runs[0])[count]

    def _tuned_point(self, item: TunedSize, losses: Replicates) -> dict[str, Any]:
        best = item.tuning["best"]
        return {
            "size": item.size,
            "num_params": self._num_params(item.runs[0]),
            "unique_tokens": item.unique_tokens,
            "loss": interval_json(interval_of(losses)),
            "settings": {name: best[name] for name in ("learning_rate", "weight_decay", "num_epochs")},
            "tune_loss_nats": item.tuning["tune_loss_nats"],
            "standing": item.tuning["standing"],
            "open_ends": item.tuning["open_ends"],
            "num_evaluated": item.tuning["num_evaluated"],
            "runs": list(item.runs),
        }

    def _ensemble_point(self, item: EnsembleOfSize) -> dict[str, Any]:
        curve = self._curves[item.size]
        logit = self._resampling.loss(self._measured.by_document(self._measured.logit_nats[item.size]))
        point: dict[str, Any] = {
            "size": item.size,
            "num_params": self._num_params(item.members[0]),
            "members": list(item.members),
            "candidates": list(item.candidates),
            "curve": [interval_json(interval_of(column)) for column in curve.T],
            "limit": interval_json(interval_of(self._limits[item.size])),
            "logit_average": interval_json(interval_of(logit)),
            "probability_minus_logit": interval_json(interval_of(curve[:, -1] - logit)),
            "held_out_count": None,
        }
        if curve.shape[1] > 2:  # the largest ensemble, predicted from the smaller ones
            limit, spread = reciprocal_limit(curve[:, :-1]).T
            error = limit + spread / curve.shape[1] - curve[:, -1]
            point["held_out_count"] = {
                "count": curve.shape[1],
                "predicted_minus_seen": interval_json(interval_of(error)),
            }
        return point

    def _student_point(self, item: Student) -> dict[str, Any]:
        loss, student = self._run_loss(item.run), self._num_params(item.run)
        teacher = self._num_params(item.teacher[0])
        point: dict[str, Any] = {
            "kind": item.kind,
            "size": item.size,
            "run": item.run,
            "num_params": student,
            "share_of_teacher": {
                count: student[count] / (len(item.teacher) * teacher[count]) for count in PARAMETER_COUNTS
            },
            "loss": interval_json(interval_of(loss)),
            "candidates": list(item.candidates),
            "teacher": list(item.teacher),
            "kept": None,
        }
        if item.kind == "ensemble":
            point["kept"] = interval_json(interval_of(self._kept(item)))
        else:
            point["minus_teacher"] = interval_json(interval_of(loss - self._run_loss(item.teacher[0])))
        return point

    def _kept(self, item: Student) -> Replicates:
        """Return the share of the ensemble's gain on a tuned single model of the members' size."""
        single = self._regularised[self._best_ensemble.size]
        ensemble = self._curves[self._best_ensemble.size][:, -1]
        return (single - self._run_loss(item.run)) / (single - ensemble)

    def _law(self, losses: Mapping[str, Replicates]) -> dict[str, Any]:
        """Return the law in the number of parameters, by both ways to count them."""
        return {count: self._law_by(losses, count) for count in PARAMETER_COUNTS}

    def _law_by(self, losses: Mapping[str, Replicates], count: str) -> dict[str, Any]:
        sizes = [float(self._size_params(size, count)) for size in losses]
        if len(sizes) < _FEWEST_FOR_LAW:
            return {"is_identified": False, "problems": [f"{len(sizes)} sizes for 3 parameters"], "fit": None}
        rows = np.stack(list(losses.values()), axis=1)
        law, replicates = _fit(sizes, rows)
        interval = interval_of(replicates)
        problems = list(law.problems)
        if interval.low <= 0:
            problems.append("the interval of the limit reaches 0")
        found: dict[str, Any] = {
            "is_identified": not problems,
            "problems": problems,
            "fit": {name: getattr(law, name) for name in ("asymptote", "coefficient", "exponent", "residual_nats")},
            "asymptote": interval_json(interval),
            "leave_one_out": [],
            "held_out_largest": None,
        }
        if len(sizes) > _FEWEST_FOR_LAW:
            found["leave_one_out"] = [item.asymptote for item in leave_one_out(sizes, rows[0].tolist())]
            smaller = fit_replicates(sizes[:-1], rows[:, :-1])
            predicted = smaller[:, 0] + smaller[:, 1] * sizes[-1] ** -smaller[:, 2]
            found["held_out_largest"] = {"predicted_minus_seen": interval_json(interval_of(predicted - rows[:, -1]))}
        return found

    def _joint_limit(self) -> Replicates | None:
        """Return the limit in members, then in parameters without embeddings, if it is identified."""
        if not self._joint["without_embeddings"]["is_identified"]:
            return None
        sizes = [float(self._size_params(size, "without_embeddings")) for size in self._limits]
        return _fit(sizes, np.stack(list(self._limits.values()), axis=1))[1]

    def _multipliers(self) -> dict[str, Multiplier]:
        tokens = [int(self._study.scale["unique_tokens"]), *(item.unique_tokens for item in self._study.more_text)]
        losses = [self._standard[self._best_standard.size], *(self._tuned(item) for item in self._study.more_text)]
        methods: dict[str, tuple[Replicates, bool]] = {
            "regularised": (self._regularised[self._best_single.size], False),
            "ensemble": (self._curves[self._best_ensemble.size][:, -1], False),
            "ensemble, limit in members": (self._limits[self._best_ensemble.size], True),
        }
        methods |= {
            f"student {item.size}": (self._run_loss(item.run), False)
            for item in self._study.students
            if item.kind == "ensemble"
        }
        joint = self._joint_limit()
        if joint is not None:
            methods["joint limit"] = (joint, True)
        return {
            name: data_multiplier(tokens, losses, values, is_limit=is_limit)
            for name, (values, is_limit) in methods.items()
        }

    def _claims(self) -> list[Claim]:
        standard, regularised = list(self._standard.values()), list(self._regularised.values())
        single = np.minimum(
            self._regularised[self._best_single.size], self._standard[self._best_standard.size]
        )  # the better of the two in each replicate: the harder one to beat
        ensemble = self._curves[self._best_ensemble.size]
        claims: list[Claim] = []
        if len(standard) > 1:
            rise = standard[-1] - np.min(standard[:-1], axis=0)
            claims.append(
                claim_of(
                    "Standard: the largest model is no better than a smaller one", "+0.015", rise, "nats", above(0)
                )
            )
            steps = np.max(np.diff(np.stack(regularised), axis=0), axis=0)
            claims.append(
                claim_of(
                    "Regularised: the loss falls with every step up in size", "falls at each", steps, "nats", below(0)
                )
            )
        gain = self._regularised[self._best_single.size] - self._standard[self._best_standard.size]
        claims.append(
            claim_of(
                "Regularised beats standard, the best size of each",
                "3.43 (limit) against 3.75",
                gain,
                "nats",
                below(0),
            )
        )
        claims.append(
            claim_of(
                f"An ensemble of {ensemble.shape[1]} beats the best single model of any size",
                "3.27 against 3.43 (limits)",
                ensemble[:, -1] - single,
                "nats",
                below(0),
            )
        )
        claims.extend(self._efficiency_claims())
        for item in self._study.students:
            point = self._student_point(item)
            if item.kind == "ensemble":
                share = point["share_of_teacher"]
                claims.append(
                    claim_of(
                        f"A student of size {item.size} keeps at least 80 % of the ensemble's gain",
                        "83 % at 1/8",
                        100 * self._kept(item),
                        "%",
                        above(80),
                        note=f"{share['total']:.2f} of the ensemble's parameters, {share['without_embeddings']:.2f} "
                        "without embeddings; one run, its seed is not in the interval",
                    )
                )
            else:
                claims.append(
                    claim_of(
                        "The self-distilled student beats its teacher",
                        "3.43 against 3.71",
                        self._run_loss(item.run) - self._run_loss(item.teacher[0]),
                        "nats",
                        below(0),
                        note="one run of each, their seeds are not in the interval",
                    )
                )
        return claims

    def _efficiency_claims(self) -> list[Claim]:
        aims = {
            "regularised": ("Regularised is worth more text", "2.29x", more_than(1)),
            "ensemble": ("The ensemble is worth at least 2.5 times the text", "3.75x seen", above(2.5)),
            "joint limit": ("The joint limit is worth at least 4 times the text", "5.17x", above(4)),
        }
        multipliers = self._multipliers()
        claims: list[Claim] = []
        for name, (statement, paper, aim) in aims.items():
            found = multipliers.get(name)
            if found is None:
                reason = "; ".join(self._joint["without_embeddings"]["problems"])
                claims.append(
                    Claim(
                        statement=statement,
                        paper=paper,
                        found=None,
                        unit="x",
                        verdict="open",
                        note=f"not identified: {reason}",
                    )
                )
                continue
            is_seen = found.observed is not None
            interval = found.observed if is_seen else found.extrapolated
            note = (
                "seen: between losses the standard recipe reached" if is_seen else "extrapolated by a law in the text"
            )
            if interval is None:
                reason = "; ".join(found.problems)
                claims.append(
                    Claim(
                        statement=statement,
                        paper=paper,
                        found=None,
                        unit="x",
                        verdict="open",
                        note=f"not identified: {reason}",
                    )
                )
                continue
            if is_seen and not math.isfinite(interval.high):
                note = f"the standard recipe was given {found.most_seen:g} times the text and may not reach this loss"
            claims.append(
                Claim(
                    statement=statement,
                    paper=paper,
                    found=interval_json(interval),
                    unit="x",
                    verdict=verdict_of(interval, aim),
                    note=note,
                )
            )
        return claims

    def _run_json(self, name: str) -> dict[str, Any]:
        settings, result = self._measured.settings[name], self._measured.results[name]
        kept = ("learning_rate", "weight_decay", "num_epochs", "unique_tokens", "seed", "batch_sequences")
        return {
            "settings": {key: settings[key] for key in kept},
            "num_params": result["num_params"],
            "tune_loss_nats": result["tune"]["loss_nats"],
            "tune_bits_per_byte": result["tune"]["bits_per_byte"],
            "tune_loss_nats_by_epoch": result["tune_loss_nats_by_epoch"],
            "train_loss_nats": result["final_train_loss_nats"],
            "decay_timescale_epochs": result["decay_timescale_epochs"],
            "test_loss_nats": float(self._run_loss(name)[0]),
        }


def _fit(sizes: Sequence[float], rows: np.ndarray) -> tuple[PowerLaw, Replicates]:
    """Return the law of the estimates, and its asymptote with replicates."""
    law = fit_power_law(sizes, rows[0])
    asymptotes = fit_replicates(sizes, rows)[:, 0]
    asymptotes[0] = law.asymptote
    return law, asymptotes


def _tune_loss(item: TunedSize) -> float:
    return float(item.tuning["tune_loss_nats"])


def _multiplier_json(item: Multiplier) -> dict[str, Any]:
    return {
        "observed": None if item.observed is None else interval_json(item.observed),
        "extrapolated": None if item.extrapolated is None else interval_json(item.extrapolated),
        "most_seen": item.most_seen,
        "problems": list(item.problems),
    }
