"""Distillation: the loss is what it says, a student of an ensemble gains on one of the text, runs are kept apart."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from forerun.core.errors import CheckpointError, ConfigError
from forerun.models.ensemble_file import EnsembleFile
from forerun.pretraining.distill import Distillation, DistillConfig, distill, distillation_loss, teacher_law
from forerun.pretraining.ensemble import (
    evaluate_ensemble,
    load_member,
    read_ensemble,
    write_ensemble,
)
from forerun.pretraining.run_store import read_run
from forerun.pretraining.train import pretrain


@pytest.fixture(scope="module")
def members(corpus, tiny, tmp_path_factory):
    store = tmp_path_factory.mktemp("members")
    return [pretrain(corpus, store, tiny(seed=seed)).folder for seed in range(2)]


def test_the_loss_is_the_mean_of_divergence_and_cross_entropy_by_weight():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    targets = torch.randint(5, (2, 3), generator=generator)
    log_p = teacher.log_softmax(dim=-1)
    p, q = log_p.exp(), logits.softmax(dim=-1)
    divergence = (p * (p / q).log()).sum(dim=-1).mean()
    text = cross_entropy(logits.flatten(0, 1), targets.flatten())
    for weight in (0.25, 1.0):
        found = distillation_loss(logits, log_p, targets, teacher_weight=weight)
        torch.testing.assert_close(found, weight * divergence + (1 - weight) * text)
    assert float(distillation_loss(teacher, log_p, targets, teacher_weight=1.0)) == pytest.approx(0, abs=1e-6)


def test_a_student_comes_closer_to_its_teacher_than_a_model_of_the_text(members, corpus, tiny, tmp_path):
    teacher = EnsembleFile(members=tuple(members), average="probability")
    student = distill(
        corpus, tmp_path, teacher, DistillConfig(student=tiny(seed=7), distillation=Distillation(teacher_weight=1.0))
    )
    twin = pretrain(corpus, tmp_path, tiny(seed=7))
    decoders = [load_member(run) for run in map(read_run, members)]
    ids = torch.from_numpy(corpus.tune.ids[:400].astype("int64")).view(-1, 20)
    law = teacher_law(decoders, ids, average="probability")

    def divergence(run):
        with torch.no_grad():
            log_q = load_member(run)(ids).log_softmax(dim=-1)
        return float((law.exp() * (law - log_q)).sum(dim=-1).mean())

    assert divergence(student) < divergence(twin)
    assert student.identity["teacher"]["members"] == [folder.name for folder in members]
    assert student.folder != twin.folder


def test_a_finished_student_is_not_made_again_and_can_be_averaged(members, corpus, tiny, tmp_path):
    teacher = read_ensemble(members[0])
    assert teacher.members == (members[0],)
    config = DistillConfig(student=tiny(seed=7, num_epochs=1))
    steps = []
    student = distill(corpus, tmp_path, teacher, config, report=lambda done, total, detail: steps.append(done))
    assert steps
    steps.clear()
    again = distill(corpus, tmp_path, teacher, config, report=lambda done, total, detail: steps.append(done))
    assert (again.folder, steps) == (student.folder, [])
    other = distill(corpus, tmp_path, EnsembleFile(members=(members[1],), average="probability"), config)
    assert other.folder != student.folder
    result = evaluate_ensemble([student.folder, members[0]], corpus)
    assert result.member_losses[0].loss_nats == pytest.approx(student.result()["tune"]["loss_nats"], abs=1e-6)


def test_an_ensemble_checkpoint_is_read_back(members, corpus, tmp_path):
    result = evaluate_ensemble(members, corpus)
    write_ensemble(tmp_path, result, average="logit", data_sha256=corpus.manifest.data_sha256)
    assert read_ensemble(tmp_path) == EnsembleFile(members=tuple(members), average="logit")


@pytest.mark.parametrize("content", ["{", '{"members": []}', '{"members": [], "average": "mean"}'])
def test_a_damaged_ensemble_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "ensemble.json").write_text(content)
    with pytest.raises(CheckpointError, match="write it anew"):
        read_ensemble(tmp_path)


def test_a_teacher_without_weight_is_refused():
    with pytest.raises(ConfigError, match=r"teacher_weight=0.*forerun pretrain train"):
        Distillation(teacher_weight=0)
