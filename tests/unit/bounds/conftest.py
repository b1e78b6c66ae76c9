"""A small task whose certificate is made once: three well-parted clouds in eight dimensions."""

import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from forerun.bounds.certify import Candidate, certify
from forerun.bounds.result import CertifyResult
from forerun.bounds.search import SearchConfig
from forerun.bounds.task import Task, arrays_task
from forerun.data.labelled import LabelledData

CANDIDATE = Candidate(dim=40, levels=3, search=SearchConfig(num_steps=60, nat_weights=(2.0,), num_sweeps=1))


def clouds(num_samples: int) -> LabelledData:
    source = np.random.default_rng(5)
    labels = source.integers(0, 3, num_samples)
    centres = source.normal(size=(3, 8)) * 3
    return LabelledData(inputs=centres[labels] + source.normal(size=(num_samples, 8)), labels=labels)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Task, CertifyResult]:
    """Return the certificate, its data file, the task and the result."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("certificate")
    clouds(480).save(folder / "data.npz")
    task = arrays_task(folder / "data.npz", input_scale=0.25)
    result = certify(task, folder / "made.zip", candidates=(CANDIDATE,))
    return folder / "made.zip", folder / "data.npz", task, result


def rewrite(
    source: Path,
    path: Path,
    edit: Callable[[dict], None] = lambda manifest: None,
    message: Callable[[bytes], bytes] = lambda message: message,
    further: tuple[str, ...] = (),
) -> Path:
    """Copy a certificate with a changed manifest, message, or further members."""
    with zipfile.ZipFile(source) as archive:
        manifest, code = json.loads(archive.read("manifest.json")), archive.read("message.bin")
    edit(manifest)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr("message.bin", message(code))
        for name in further:
            archive.writestr(name, b"running_mean")
    return path


@pytest.fixture
def tampered(made: tuple[Path, Path, Task, CertifyResult], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that rewrites the certificate."""
    return partial(rewrite, made[0], tmp_path / "tampered.zip")
