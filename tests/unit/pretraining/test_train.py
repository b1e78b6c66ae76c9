"""Training: it learns, a killed run goes on to the same curve, a finished one is not made again."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from forerun.core.errors import CheckpointError, ConfigError, TrainingError
from forerun.models.load import build_decoder, load_checkpoint
from forerun.pretraining import train
from forerun.pretraining.batches import EpochBatches
from forerun.pretraining.config import SHAPES, PretrainConfig
from forerun.pretraining.initialisation import fresh_decoder, num_params
from forerun.pretraining.run_store import identity_hash, open_run, read_run
from forerun.pretraining.train import pretrain, tune_loss

KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
from conftest import tiny_config
from forerun.pretraining.prepared_corpus import open_corpus
from forerun.pretraining.train import pretrain

def die(done, total, detail):
    if done == 11:
        os.kill(os.getpid(), signal.SIGKILL)

pretrain(open_corpus(Path(sys.argv[1])), Path(sys.argv[2]), tiny_config(**json.loads(sys.argv[4])), report=die)
"""

EVERY_OPTION = {"optimizer": "muon", "schedule": "wsd", "dropout": 0.2, "average_decay": 0.9}


@pytest.fixture(scope="module")
def whole(corpus, tiny, tmp_path_factory):
    return pretrain(corpus, tmp_path_factory.mktemp("whole"), tiny())


def curve(run):
    return json.loads((run.folder / "train_losses.json").read_text())


def test_it_learns_and_the_result_says_what_was_measured(whole, corpus, tiny):
    result = whole.result()
    assert result["tune"]["loss_nats"] < curve(whole)[0] - 1
    assert len(curve(whole)) == result["num_steps"] == 2 * (3999 // 32 // 8)
    assert list(result["tune_loss_nats_by_epoch"]) == ["1", "2"]
    decoder = build_decoder(load_checkpoint(whole.folder / "model"))
    assert tune_loss(decoder, corpus, tiny()).loss_nats == pytest.approx(result["tune"]["loss_nats"], abs=1e-6)
    assert not (whole.folder / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("options", [{}, EVERY_OPTION], ids=["plain", "every option"])
def test_a_run_killed_by_the_system_goes_on_to_the_same_curve_and_weights(
    options, whole, prepared, corpus, tmp_path, tmp_path_factory, tiny
):
    if options:
        whole = pretrain(corpus, tmp_path_factory.mktemp("options"), tiny(**options))
    here = os.path.dirname(__file__)  # noqa: PTH120
    command = [sys.executable, "-c", KILLED, prepared, tmp_path, here, json.dumps(options)]
    killed = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    cut = tmp_path / whole.folder.name
    assert (cut / "checkpoint.safetensors").exists()
    assert not (cut / "result.json").exists()
    steps = []
    torch.manual_seed(99)  # what the global generator held counts for nothing
    resumed = pretrain(corpus, tmp_path, tiny(**options), report=lambda done, total, detail: steps.append(done))
    assert steps[0] == 9, "the last checkpoint is of step 8"
    assert curve(resumed) == curve(whole)
    assert resumed.result()["tune_loss_nats_by_epoch"] == whole.result()["tune_loss_nats_by_epoch"]
    weights = [(run.folder / "model" / "model.safetensors").read_bytes() for run in (resumed, whole)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("option", EVERY_OPTION)
def test_every_option_changes_the_run_and_what_is_measured_is_what_is_written(option, whole, corpus, tmp_path, tiny):
    config = tiny(num_epochs=1, **{option: EVERY_OPTION[option]})
    run = pretrain(corpus, tmp_path, config)
    assert run.identity["config"][option] == EVERY_OPTION[option]
    assert curve(run)[-1] != curve(whole)[len(curve(run)) - 1] or option == "average_decay"
    assert run.result()["tune"]["loss_nats"] < curve(run)[0] - 0.5
    decoder = build_decoder(load_checkpoint(run.folder))
    assert tune_loss(decoder, corpus, config).loss_nats == pytest.approx(run.result()["tune"]["loss_nats"], abs=1e-6)


def test_later_options_leave_earlier_runs_their_names(tiny):
    assert not EVERY_OPTION.keys() & tiny().identity().keys()
    assert tiny().identity()["shape"] == asdict(tiny().shape)
    assert tiny(dropout=0.1).identity() == tiny().identity() | {"dropout": 0.1}


def test_a_finished_run_is_not_made_again_and_another_seed_is_another_run(whole, corpus, tiny, monkeypatch):
    before = {file: file.stat().st_mtime_ns for file in whole.folder.rglob("*")}
    monkeypatch.setattr(train, "TrainingLoop", None)
    again = pretrain(corpus, whole.folder.parent, tiny())
    assert again.folder == whole.folder
    assert {file: file.stat().st_mtime_ns for file in whole.folder.rglob("*")} == before
    with pytest.raises(TypeError):
        pretrain(corpus, whole.folder.parent, tiny(seed=1))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_remedy(corpus, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(train, "next_token_loss", lambda decoder, ids: decoder(ids).sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"the loss at step 0 is nan.*learning rate"):
        pretrain(corpus, tmp_path, tiny())
    [folder] = tmp_path.iterdir()
    assert read_run(folder).result() is None


def test_a_disk_that_is_full_is_a_clear_error_and_keeps_the_checkpoint(whole, corpus, tmp_path, tiny, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_huggingface", full)
        with pytest.raises(TrainingError, match=r"No space left on device.*goes on"):
            pretrain(corpus, tmp_path, tiny())
    [folder] = tmp_path.iterdir()
    assert (folder / "checkpoint.safetensors").exists()
    assert curve(pretrain(corpus, tmp_path, tiny())) == curve(whole)


@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["fused", "plain"])
def test_values_computed_again_for_the_gradient_are_the_same(corpus, tmp_path, tiny, dropout):
    options = {"num_epochs": 1, "dropout": dropout}
    kept = pretrain(corpus, tmp_path, tiny(**options))
    again = pretrain(corpus, tmp_path, tiny(**options, gradient_checkpointing=True))
    assert again.folder != kept.folder
    assert curve(again) == curve(kept)


def test_in_bfloat16_a_run_learns_as_in_float32_and_keeps_wide_weights(corpus, tmp_path, tiny, monkeypatch):
    narrow = pretrain(corpus, tmp_path, tiny(precision="bfloat16", checkpoint_every=1000))
    wide = pretrain(corpus, tmp_path, tiny(checkpoint_every=1000))
    differences = [abs(a - b) for a, b in zip(curve(narrow), curve(wide), strict=True)]
    assert 1e-5 < max(differences) < 0.05
    tensors = load_file(narrow.folder / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values()), "masters are wide"


def test_two_processes_do_not_make_the_same_run(corpus, tmp_path, tiny):
    def interfere(done, total, detail):
        if done == 1:
            with pytest.raises(CheckpointError, match="another process"):
                pretrain(corpus, tmp_path, tiny(num_epochs=1))

    pretrain(corpus, tmp_path, tiny(num_epochs=1), report=interfere)
    pretrain(corpus, tmp_path, tiny(num_epochs=1))


def test_an_epoch_sees_every_sequence_once_and_documents_in_a_new_order(corpus):
    batches = EpochBatches(corpus.train, sequence_tokens=16, batch_sequences=1, seed=3)

    def epoch(number):
        first = number * batches.steps_per_epoch
        return torch.cat([batches.at(step) for step in range(first, first + batches.steps_per_epoch)])

    once, twice = epoch(0), epoch(1)
    counts = torch.bincount(torch.as_tensor(corpus.train.ids.astype("int64")))
    missing = counts - torch.bincount(once[:, :-1].flatten(), minlength=len(counts))
    assert missing.min() >= 0
    assert missing.sum() == len(corpus.train.ids) - 16 * len(once) <= 16
    assert not torch.equal(once, twice)
    assert torch.equal(epoch(0), once)
    rows = [{tuple(row.tolist()) for row in part} for part in (once, twice)]
    assert len(rows[0] & rows[1]) < 0.5 * len(once), "documents keep their order"


def test_batches_that_the_corpus_does_not_fill_are_refused(corpus, tmp_path, tiny):
    with pytest.raises(ConfigError, match="do not fill a batch"):
        pretrain(corpus, tmp_path, tiny(unique_tokens=100))
    with pytest.raises(ConfigError, match="unique_tokens=99999999"):
        pretrain(corpus, tmp_path, tiny(unique_tokens=99_999_999))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"num_epochs": 0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1},
        {"learning_rate": 1.0},
        {"clip_norm": 0},
        {"optimizer": "sgd"},
        {"schedule": "linear"},
        {"decay_fraction": 0},
        {"dropout": 1.0},
        {"average_decay": -0.1},
        {"precision": "float16"},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        PretrainConfig(**options)


def test_named_sizes_have_the_parameters_they_are_named_for():
    for name, shape in SHAPES.items():
        named = int(name[:-1]) * {"k": 1_000, "m": 1_000_000}[name[-1]]
        counts = num_params(fresh_decoder(shape, vocab_size=300, max_len=8, seed=0))
        assert counts["without_embeddings"] == pytest.approx(named, rel=0.05)
        assert counts["total"] - counts["without_embeddings"] == 600 * shape.hidden_size


def test_initial_weights_come_from_the_seed_alone():
    def weights(seed):
        decoder = fresh_decoder(SHAPES["25k"], vocab_size=300, max_len=8, seed=seed)
        return torch.cat([parameter.flatten() for parameter in decoder.parameters()])

    first = weights(0)
    torch.manual_seed(1)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_a_folder_of_another_run_is_refused(tmp_path):
    run = open_run(tmp_path, {"seed": 0})
    assert run.folder.name == identity_hash({"seed": 0}) != identity_hash({"seed": 1})
    (run.folder / "run.json").write_text('{"seed": 1}')
    with pytest.raises(CheckpointError, match="not the one its name says"):
        open_run(tmp_path, {"seed": 0})
    with pytest.raises(CheckpointError, match="is no run"):
        read_run(tmp_path)
    (run.folder / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        read_run(run.folder)
