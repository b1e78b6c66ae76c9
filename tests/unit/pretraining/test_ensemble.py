"""Ensembles: the law is the average it says, the loss is that of the law, strangers are refused."""

import json
import math
import shutil

import pytest
import torch

from forerun.core.errors import CheckpointError, ConfigError
from forerun.pretraining.ensemble import average_law, evaluate_ensemble, write_ensemble
from forerun.pretraining.evaluation import held_out_losses
from forerun.pretraining.prepare import PrepareConfig, prepare_corpus
from forerun.pretraining.prepared_corpus import open_corpus
from forerun.pretraining.train import pretrain


@pytest.fixture(scope="module")
def runs(corpus, tiny, tmp_path_factory):
    store = tmp_path_factory.mktemp("runs")
    return [pretrain(corpus, store, tiny(seed=seed)) for seed in range(3)]


def test_averages_are_the_mixture_and_the_normalised_product():
    logits = [torch.tensor([0.0, 1.0, 5.0]), torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.5, 0.5, 0.5])]
    laws = torch.stack([torch.softmax(row, dim=-1) for row in logits])
    torch.testing.assert_close(average_law(logits, average="probability").exp(), laws.mean(dim=0))
    product = laws.log().mean(dim=0).exp()
    torch.testing.assert_close(average_law(logits, average="logit").exp(), product / product.sum())


def test_losses_are_by_hand_what_they_are_by_the_evaluation(corpus):
    stream, num_bytes = corpus.tune_part(400)
    uniform = torch.full((300,), -math.log(300))
    [loss] = held_out_losses(
        lambda ids: [uniform.expand(*ids.shape, 300)], stream, num_bytes=num_bytes, sequence_tokens=7
    )
    assert loss.num_tokens == len(stream.ids) - 1
    assert loss.loss_nats == pytest.approx(math.log(300), rel=1e-6)
    assert loss.bits_per_byte == pytest.approx(math.log2(300) * loss.num_tokens / num_bytes, rel=1e-6)


def test_members_are_measured_alone_and_together(runs, corpus):
    result = evaluate_ensemble([run.folder for run in runs], corpus)
    for run, loss in zip(runs, result.member_losses, strict=True):
        assert loss.loss_nats == pytest.approx(run.result()["tune"]["loss_nats"], abs=1e-6)
    alone = [loss.loss_nats for loss in result.member_losses]
    for average in ("probability", "logit"):
        found = [loss.loss_nats for loss in result.by_count[average]]
        assert found[0] == pytest.approx(alone[0], abs=1e-6)
        for count in (2, 3):  # Jensen: no average is worse than its members' mean; equal only for equal laws
            assert found[count - 1] < sum(alone[:count]) / count - 1e-4


def test_checkpoint_holds_members_and_average(runs, corpus, tmp_path):
    result = evaluate_ensemble([run.folder for run in runs[:2]], corpus)
    write_ensemble(tmp_path / "both", result, average="logit", data_sha256=corpus.manifest.data_sha256)
    content = json.loads((tmp_path / "both" / "ensemble.json").read_text())
    assert content["average"] == "logit"
    assert content["members"] == [str(run.folder.resolve()) for run in runs[:2]]


def test_a_run_named_twice_or_not_finished_is_refused(runs, corpus, tmp_path):
    with pytest.raises(ConfigError, match="named twice"):
        evaluate_ensemble([runs[0].folder, runs[0].folder], corpus)
    cut = tmp_path / runs[0].folder.name
    shutil.copytree(runs[0].folder, cut)
    (cut / "result.json").unlink()
    with pytest.raises(CheckpointError, match="is not finished"):
        evaluate_ensemble([cut], corpus)


@pytest.mark.parametrize(
    ("options", "message"), [({"vocab_size": 290}, "another tokenizer"), ({"vocab_size": 300}, "trained on other data")]
)
def test_members_of_another_corpus_or_tokenizer_are_refused(runs, texts, prepared, tmp_path, options, message):
    other = tmp_path / "texts"
    shutil.copytree(texts, other)
    (other / "more.txt").write_text("The lamp finds the road. " * 30)
    tokenizer = None if message == "another tokenizer" else prepared
    prepare_corpus(str(other), tmp_path / "data", PrepareConfig(min_split_tokens=64, tokenizer=tokenizer, **options))
    with pytest.raises(CheckpointError, match=message):
        evaluate_ensemble([runs[0].folder], open_corpus(tmp_path / "data"))
