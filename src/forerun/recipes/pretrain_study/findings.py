"""From what the test split says to what a report holds: points, laws, multipliers and claims, as JSON types."""

from dataclasses import asdict
from typing import Any

from forerun.pretraining.efficiency import Multiplier
from forerun.pretraining.joint import held_out_count_json, largest_count_error, size_law_json
from forerun.pretraining.laws import interval_json, interval_of
from forerun.recipes.pretrain_study.evidence import Evidence, Replicates
from forerun.recipes.pretrain_study.measure import Measurements
from forerun.recipes.pretrain_study.statements import claims_of
from forerun.recipes.pretrain_study.study_file import EnsembleOfSize, Student, Study, TunedSize


def find(study: Study, measured: Measurements) -> dict[str, Any]:
    """Return everything a report says, as JSON types."""
    evidence = Evidence(study, measured)
    laws = {"regularised": evidence.law(evidence.regularised), "joint": evidence.joint}
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
        "claims": [asdict(claim) for claim in claims_of(evidence)],
        "standard": [_tuned_point(evidence, item, evidence.standard[item.size]) for item in study.standard],
        "regularised": [_tuned_point(evidence, item, evidence.regularised[item.size]) for item in study.regularised],
        "more_text": [_tuned_point(evidence, item, evidence.tuned(item)) for item in study.more_text],
        "open_ends": evidence.open_ends(),
        "ensembles": [_ensemble_point(evidence, item) for item in study.ensembles],
        "students": [_student_point(evidence, item) for item in study.students],
        "laws": {name: {count: size_law_json(law) for count, law in both.items()} for name, both in laws.items()},
        "efficiency": {name: _multiplier_json(item) for name, item in evidence.multipliers().items()},
        "runs": {name: _run_json(evidence, name) for name in study.all_runs()},
    }


def _interval(values: Replicates) -> dict[str, float | None]:
    return interval_json(interval_of(values))


def _tuned_point(evidence: Evidence, item: TunedSize, losses: Replicates) -> dict[str, Any]:
    best = item.tuning["best"]
    kept = ("tune_loss_nats", "standing", "open_ends", "num_evaluated")
    return {
        "size": item.size,
        "num_params": evidence.num_params(item.runs[0]),
        "unique_tokens": item.unique_tokens,
        "loss": _interval(losses),
        "settings": {name: best[name] for name in ("learning_rate", "weight_decay", "num_epochs")},
        **{name: item.tuning[name] for name in kept},
        "runs": list(item.runs),
    }


def _ensemble_point(evidence: Evidence, item: EnsembleOfSize) -> dict[str, Any]:
    curve, measured = evidence.curves[item.size], evidence.measured
    logit = evidence.resampling.loss(measured.by_document(measured.logit_nats[item.size]))
    return {
        "size": item.size,
        "num_params": evidence.num_params(item.members[0]),
        "members": list(item.members),
        "candidates": list(item.candidates),
        "curve": [_interval(column) for column in curve.T],
        "limit": _interval(evidence.limits[item.size]),
        "logit_average": _interval(logit),
        "probability_minus_logit": _interval(curve[:, -1] - logit),
        "held_out_count": held_out_count_json(largest_count_error(curve), count=curve.shape[1]),
    }


def _student_point(evidence: Evidence, item: Student) -> dict[str, Any]:
    loss = evidence.run_loss(item.run)
    point: dict[str, Any] = {
        "kind": item.kind,
        "size": item.size,
        "run": item.run,
        "num_params": evidence.num_params(item.run),
        "share_of_teacher": evidence.share_of_teacher(item),
        "loss": _interval(loss),
        "candidates": list(item.candidates),
        "teacher": list(item.teacher),
        "kept": None,
    }
    if item.kind == "ensemble":
        point["kept"] = _interval(evidence.kept(item))
    else:
        point["minus_teacher"] = _interval(loss - evidence.run_loss(item.teacher[0]))
    return point


def _run_json(evidence: Evidence, name: str) -> dict[str, Any]:
    settings, result = evidence.measured.settings[name], evidence.measured.results[name]
    kept = ("learning_rate", "weight_decay", "num_epochs", "unique_tokens", "seed", "batch_sequences")
    return {
        "settings": {key: settings[key] for key in kept},
        "num_params": result["num_params"],
        "tune_loss_nats": result["tune"]["loss_nats"],
        "tune_bits_per_byte": result["tune"]["bits_per_byte"],
        "tune_loss_nats_by_epoch": result["tune_loss_nats_by_epoch"],
        "train_loss_nats": result["final_train_loss_nats"],
        "decay_timescale_epochs": result["decay_timescale_epochs"],
        "test_loss_nats": float(evidence.run_loss(name)[0]),
    }


def _multiplier_json(item: Multiplier) -> dict[str, Any]:
    return {
        "observed": None if item.observed is None else interval_json(item.observed),
        "extrapolated": None if item.extrapolated is None else interval_json(item.extrapolated),
        "most_seen": item.most_seen,
        "problems": list(item.problems),
    }
