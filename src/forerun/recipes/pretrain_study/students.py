"""The students of a study: what each may learn from, and the best of them by the tune split."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from forerun.core.errors import TrainingError
from forerun.models.ensemble_file import EnsembleFile
from forerun.pretraining.config import SHAPES, WEIGHT_DECAY, PretrainConfig, Size
from forerun.pretraining.distill import Distillation
from forerun.pretraining.jobs import Job, tune_loss_of
from forerun.pretraining.run_store import Run
from forerun.pretraining.sampled_text import SampledTextConfig
from forerun.recipes.pretrain_study.scale import StudyScale
from forerun.recipes.pretrain_study.study_file import Student


def student_jobs(base: Job, size: Size, like: PretrainConfig, teacher: EnsembleFile, scale: StudyScale) -> list[Job]:
    """Return what is tried first for a student: real text, with the usual and the tuned weight decay.

    Args:
        base: Names corpus and store.
        size: Of the student.
        like: Settings to take over, for twice their epochs.
        teacher: Whose student it is.
        scale: Says how much the teacher weighs.
    """
    weight = scale.teacher_weight if len(teacher.members) > 1 else scale.self_weight
    settings = replace(like, shape=SHAPES[size], num_epochs=2 * like.num_epochs)
    return [
        replace(
            base,
            config=replace(settings, weight_decay=decay),
            teacher=teacher,
            distillation=Distillation(teacher_weight=weight),
        )
        for decay in sorted({WEIGHT_DECAY["standard"], like.weight_decay})
    ]


def sampled_jobs(jobs: Sequence[Job], runs: Sequence[Run | None], scale: StudyScale) -> list[Job]:
    """Return what is tried next: the best so far, with sampled text besides; nothing where the scale has none."""
    made = _made(jobs, runs)
    if not scale.sampled_tokens or not made:
        return []
    best, _, _ = min(made, key=_loss)
    sampled = SampledTextConfig(num_tokens=scale.sampled_tokens)
    return [replace(best, distillation=replace(best.distillation, sampled=sampled, sampled_share=scale.sampled_share))]


def best_student(
    kind: str, size: Size, teacher: EnsembleFile, jobs: Sequence[Job], runs: Sequence[Run | None]
) -> Student:
    """Return the candidate with the lowest tune loss.

    Args:
        kind: ``ensemble`` or ``self``.
        size: Of the student.
        teacher: Whose student it is.
        jobs: The candidates.
        runs: Made of them; ``None`` for one that diverged.

    Raises:
        TrainingError: All of them diverged.
    """
    made = _made(jobs, runs)
    if not made:
        raise TrainingError(
            f"no student of size {size} trains at learning rate {jobs[0].config.learning_rate:g}: every loss was no "
            "number; put lower rates on the ladder"
        )
    _, best, _ = min(made, key=_loss)
    return Student(
        kind=kind,
        size=size,
        run=best.folder.name,
        teacher=tuple(member.name for member in teacher.members),
        candidates=tuple(_candidate_json(job, loss, is_chosen=run is best) for job, run, loss in made),
    )


def _made(jobs: Sequence[Job], runs: Sequence[Run | None]) -> list[tuple[Job, Run, float]]:
    return [(job, run, tune_loss_of(run)) for job, run in zip(jobs, runs, strict=True) if run is not None]


def _loss(candidate: tuple[Job, Run, float]) -> float:
    return candidate[2]


def _candidate_json(job: Job, loss: float, *, is_chosen: bool) -> dict[str, Any]:
    sampled = job.distillation.sampled
    return {
        "weight_decay": job.config.weight_decay,
        "num_epochs": job.config.num_epochs,
        "sampled_tokens": 0 if sampled is None else sampled.num_tokens,
        "sampled_share": 0.0 if sampled is None else job.distillation.sampled_share,
        "tune_loss_nats": loss,
        "is_chosen": is_chosen,
    }
