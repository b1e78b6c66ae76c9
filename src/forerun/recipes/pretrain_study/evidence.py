"""What the test split says of each part of a study, as an estimate with replicates that share their draws."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from forerun.pretraining.efficiency import Multiplier, data_multiplier
from forerun.pretraining.joint import PARAMETER_COUNTS, SizeLaw, law_in_size
from forerun.pretraining.laws import reciprocal_limit
from forerun.pretraining.resampling import Resampling
from forerun.recipes.pretrain_study.measure import Measurements
from forerun.recipes.pretrain_study.study_file import Student, Study, TunedSize

Replicates = np.ndarray
"""An estimate and its replicates."""


class Evidence:
    """Losses of a study's parts.

    Args:
        study: Which runs play which part.
        measured: What they lose on the test split.

    Attributes:
        standard: Mean over seeds of the tuned standard recipe, by size.
        regularised: The same of the regularised recipe.
        curves: Of ensembles of 1, 2, ... members, by their size.
        limits: Their limits in members.
        best_single: The best regularised size, by the tune split.
        best_standard: The best standard size.
        best_ensemble: The best ensemble.
        single: The better of the two best single models in each replicate: the harder one to beat.
        joint: The law of the limits in size, by the way to count parameters.
    """

    def __init__(self, study: Study, measured: Measurements) -> None:
        self.study, self.measured = study, measured
        self.resampling = Resampling(
            measured.document_tokens, num_replicates=int(study.scale["num_replicates"]), seed=0
        )
        self.standard = {item.size: self.tuned(item) for item in study.standard}
        self.regularised = {item.size: self.tuned(item) for item in study.regularised}
        self.curves = {
            item.size: self.resampling.ensemble_curve(
                np.stack([measured.token_nats[name] for name in item.members]), measured.document_starts
            )
            for item in study.ensembles
        }
        self.limits = {size: reciprocal_limit(curve)[:, 0] for size, curve in self.curves.items()}
        self.best_single = min(study.regularised, key=_tune_loss)
        self.best_standard = min(study.standard, key=_tune_loss)
        self.best_ensemble = min(study.ensembles, key=lambda item: item.tune_loss_nats)
        self.single = np.minimum(self.regularised[self.best_single.size], self.standard[self.best_standard.size])
        self.joint = self.law(self.limits)

    def tuned(self, item: TunedSize) -> Replicates:
        """Return the mean over the seeds of a tuned size."""
        return self.resampling.seed_mean([self.measured.document_nats(name) for name in item.runs])

    def run_loss(self, name: str) -> Replicates:
        """Return the loss of one run; its seed is not in the replicates."""
        return self.resampling.loss(self.measured.document_nats(name))

    def num_params(self, run: str) -> dict[str, int]:
        """Return the parameters of a run, by the way to count them."""
        return self.measured.results[run]["num_params"]

    def kept(self, student: Student) -> Replicates:
        """Return the share of the ensemble's gain, over a tuned single model of its members' size, that a student has.

        Where the gain is not above 0 in a replicate, the share is minus or plus infinity by the student's own gain.
        """
        single, ensemble = self.regularised[self.best_ensemble.size], self.curves[self.best_ensemble.size][:, -1]
        own, whole = single - self.run_loss(student.run), single - ensemble
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(whole > 0, own / whole, np.copysign(np.inf, own))

    def share_of_teacher(self, student: Student) -> dict[str, float]:
        """Return a student's parameters over those of all its teacher's members, by the way to count them."""
        own, member = self.num_params(student.run), self.num_params(student.teacher[0])
        return {count: own[count] / (len(student.teacher) * member[count]) for count in PARAMETER_COUNTS}

    def student_nearest(self, share: float) -> Student | None:
        """Return the ensemble's student whose share of all the ensemble's parameters is nearest, by their ratio."""
        students = [item for item in self.study.students if item.kind == "ensemble"]
        return min(students, key=lambda item: abs(math.log(self.share_of_teacher(item)["total"] / share)), default=None)

    def law(self, losses: Mapping[str, Replicates]) -> dict[str, SizeLaw]:
        """Return the law in the number of parameters, by the way to count them."""
        rows = np.stack(list(losses.values()), axis=1)
        return {
            count: law_in_size([float(self._size_params(size, count)) for size in losses], rows)
            for count in PARAMETER_COUNTS
        }

    def multipliers(self) -> dict[str, Multiplier]:
        """Return how much text each method is worth, by its name."""
        more_text = self.study.more_text
        tokens = [int(self.study.scale["unique_tokens"]), *(item.unique_tokens for item in more_text)]
        losses = [self.standard[self.best_standard.size], *(self.tuned(item) for item in more_text)]
        best = self.best_ensemble.size
        methods: dict[str, tuple[Replicates, bool]] = {
            "regularised": (self.regularised[self.best_single.size], False),
            "ensemble": (self.curves[best][:, -1], False),
            "ensemble, limit in members": (self.limits[best], True),
        }
        methods |= {
            f"student {item.size}": (self.run_loss(item.run), False)
            for item in self.study.students
            if item.kind == "ensemble"
        }
        joint = self.joint["without_embeddings"]
        if joint.limits is not None and joint.is_identified:
            methods["joint limit"] = (joint.limits, True)
        return {
            name: data_multiplier(tokens, losses, values, is_limit=is_limit)
            for name, (values, is_limit) in methods.items()
        }

    def open_ends(self) -> list[dict[str, Any]]:
        """Return the winners that lie at the end of a ladder: what lies beyond was not tried."""
        parts = {"standard": self.study.standard, "more text": self.study.more_text}
        parts["regularised"] = self.study.regularised
        return [
            {"recipe": name, "size": item.size, "unique_tokens": item.unique_tokens, "ends": item.tuning["open_ends"]}
            for name, items in parts.items()
            for item in items
            if item.tuning["open_ends"]
        ]

    def _size_params(self, size: str, count: str) -> int:
        item = next(item for item in self.study.regularised if item.size == size)
        return self.num_params(item.runs[0])[count]


def _tune_loss(item: TunedSize) -> float:
    return float(item.tuning["tune_loss_nats"])
