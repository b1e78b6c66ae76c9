"""What a study made, as a file: which runs play which part. The report needs nothing else."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from forerun.core.atomic_files import write_json_file
from forerun.core.errors import CheckpointError

STUDY_FILE: Final = "study.json"
DATA_FOLDER: Final = "data"
RUNS_FOLDER: Final = "runs"
_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedSize:
    """A size of one recipe, tuned.

    Attributes:
        size: Its name.
        unique_tokens: The text it had.
        runs: Hashes of the winner's runs, one a seed.
        tuning: The certificate, as :func:`forerun.pretraining.tune.tune_json` writes it.
    """

    size: str
    unique_tokens: int
    runs: tuple[str, ...]
    tuning: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleOfSize:
    """An ensemble of one size.

    Attributes:
        size: Of each member.
        members: Their hashes.
        tune_loss_nats: Of the probability average of all.
        candidates: Settings that were compared for the members, with the estimated limit of each.
    """

    size: str
    members: tuple[str, ...]
    tune_loss_nats: float
    candidates: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A student.

    Attributes:
        kind: ``ensemble`` or ``self``, after its teacher.
        size: Its name.
        run: Its hash.
        teacher: Hashes of the teacher's members.
        candidates: Settings that were compared, with the tune loss of each.
    """

    kind: str
    size: str
    run: str
    teacher: tuple[str, ...]
    candidates: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A finished study.

    Attributes:
        scale: Its extent, as JSON types.
        corpus: What the corpus was made of.
        data: Folder of the prepared corpus, absolute or from the study's folder.
        data_sha256: Hash of the prepared corpus.
        standard: Sizes of the standard recipe.
        more_text: The standard recipe on more text.
        regularised: Sizes of the regularised recipe.
        ensembles: One of each size.
        students: Of the best ensemble, and of a single model.
        num_runs: Runs in the store.
        elapsed_s: Time of each stage of the last call, finished runs skipped.
        machine: Versions, cores and workers.
    """

    scale: dict[str, Any]
    corpus: str
    data: str
    data_sha256: str
    standard: tuple[TunedSize, ...]
    more_text: tuple[TunedSize, ...]
    regularised: tuple[TunedSize, ...]
    ensembles: tuple[EnsembleOfSize, ...]
    students: tuple[Student, ...]
    num_runs: int
    elapsed_s: dict[str, float]
    machine: dict[str, Any]

    def all_runs(self) -> list[str]:
        """Return the hash of every run that the report is about, each once."""
        tuned = [
            run for part in (self.standard, self.more_text, self.regularised) for item in part for run in item.runs
        ]
        members = [run for ensemble in self.ensembles for run in ensemble.members]
        return list(dict.fromkeys([*tuned, *members, *(student.run for student in self.students)]))


def write_study(folder: Path, study: Study) -> None:
    """Write a study into its folder.

    Raises:
        OSError: It can't be written.
    """
    write_json_file(folder / STUDY_FILE, {"format": _FORMAT, **asdict(study)})


def read_study(folder: Path) -> Study:
    """Read a study.

    Raises:
        CheckpointError: The folder holds none, or one that is damaged or of another release.
    """
    path = folder / STUDY_FILE
    advice = (
        "name a folder that 'forerun pretrain reproduce --out' has finished; the same command goes on where it was cut"
    )
    if not path.is_file():
        raise CheckpointError(f"{folder}: has no {STUDY_FILE}; {advice}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise CheckpointError(f"{path}: is of another release (this one reads format {_FORMAT}); {advice}")
        for name in ("standard", "more_text", "regularised"):
            content[name] = tuple(TunedSize(**_with_tuples(item, "runs")) for item in content[name])
        content["ensembles"] = tuple(
            EnsembleOfSize(**_with_tuples(item, "members", "candidates")) for item in content["ensembles"]
        )
        content["students"] = tuple(
            Student(**_with_tuples(item, "teacher", "candidates")) for item in content["students"]
        )
        return Study(**content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is damaged ({error!r}); {advice}") from error


def _with_tuples(item: dict[str, Any], *names: str) -> dict[str, Any]:
    return item | {name: tuple(item[name]) for name in names}
