"""Training an EAGLE-3 head: it is trained on what it meets in drafting, and written as it is published."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated.heads import SlowHead

from forerun.cli.main import main
from forerun.core.errors import ConfigError
from forerun.core.rows import Rows
from forerun.models.draft import load_draft
from forerun.models.draft_runner import build_draft
from forerun.models.eagle3 import head_shapes
from forerun.models.load import build_decoder
from forerun.training.distillation.batches import RoundConfig, TextBatches
from forerun.training.distillation.corpus import make_runner, sample_shard
from forerun.training.distillation.eagle3 import MANIFEST_FILE, Eagle3Batches, Eagle3Student, run_mask
from forerun.training.distillation.train import DraftTrainingConfig, train_draft

LAYER_IDS = (0, 2, 3)


@pytest.fixture(scope="module")
def texts(target, training_config):
    runner = make_runner(target, training_config.corpus)
    return sample_shard(target, runner, training_config.corpus, 0, layer_ids=LAYER_IDS, keeps="hidden states")


def batches_of(texts, vocab_ids):
    return Eagle3Batches(
        TextBatches(texts, vocab_ids=vocab_ids, vocab_size=257, batch_tokens=200, rounds=RoundConfig(), seed=0)
    )


def test_sampled_hidden_states_are_the_targets(target, texts):
    decoder = build_decoder(target)
    for text in texts[:3]:
        entering = {}
        with torch.no_grad():
            decoder.hidden_states(
                torch.tensor([[*text.prompt, *text.tokens[:-1]]]),
                on_layer=lambda layer, x, entering=entering: entering.update({layer: x[0].numpy()}),
            )
        for column, layer in enumerate(LAYER_IDS):
            np.testing.assert_allclose(text.states[:, column], entering[layer], atol=0.03)


def test_every_run_is_a_draft_of_its_length(target, texts):
    """In run s the target has read all but the last s tokens: a head that drafts one by one says the same there."""
    vocab_ids = np.arange(0, 257, 2)
    torch.manual_seed(0)
    student = Eagle3Student(target, layer_ids=LAYER_IDS, vocab_ids=vocab_ids, num_runs=3, seed=1)
    for parameter in student.head.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)  # far from where it begins
    state = {name: student.head.state_dict()[name].numpy() for name in head_shapes(student.head.config)}
    slow = SlowHead(config=student.head.config, weights=state)
    batch = batches_of(texts, vocab_ids).collate(texts[:2])
    with torch.no_grad():
        runs = student(batch)
    place = 0
    for text in texts[:2]:
        whole = [*text.prompt, *text.tokens]
        for offset in range(len(text.tokens)):
            read = len(text.prompt) + offset  # tokens up to the one whose successor is predicted
            for run, logits in enumerate(runs):
                if offset % 4 == run:
                    expected = slow.logits(whole[:read], text.states[: read - 1 - run])[-1]
                    np.testing.assert_allclose(logits[place], expected, atol=2e-4)
            assert text.top_ids[offset][text.top_ids[offset] % 2 == 0].tolist() == (
                vocab_ids[batch.columns[place][batch.probs[place] > 0]].tolist()
            )
            place += 1
    assert place == len(batch.columns)


def test_a_run_sees_every_earlier_column_once():
    for run in range(4):
        mask = run_mask(6, run)[0, 0]
        for column in range(run, 6):
            seen = torch.nonzero(mask[column])[:, 0]
            assert sorted((seen % 6).tolist()) == list(range(column + 1))
            assert sorted((seen // 6).tolist()) == [0] * (column + 1 - run) + list(range(1, run + 1))


def test_training_writes_a_head_that_is_better_than_before(target, training_config, tmp_path, capsys):
    config = replace(
        training_config, kind="eagle3", layer_ids=None, num_runs=2, num_steps=30, learning_rate=5e-3, vocab_size=100
    )
    manifest = train_draft(target, tmp_path, config, report=lambda *_: None)
    assert json.loads(json.dumps(manifest)) == json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert manifest["layer_ids"] == [0, 2, 3]
    assert manifest["final_loss_nats"] < 0.9 * manifest["first_loss_nats"]
    assert len(manifest["held_out_greedy_agreement_by_place"]) == 2
    draft = load_draft(str(tmp_path), target)
    assert draft.eagle3 is not None
    assert draft.eagle3.layer_ids == LAYER_IDS
    assert len(draft.vocab_ids) == 100
    assert "embed_tokens.weight" not in (tmp_path / "model.safetensors").read_bytes()[:4096].decode("latin-1")
    runner = build_draft(draft, dtype="float32", num_sequences=1, capacity=32)
    runner.take_features(0, 0, np.ones((3, 3, 32), np.float32))
    assert runner.forward(Rows.chains([(0, 1, [4, 5, 6])])).shape == (3, 100)

    argv = ["train-draft", "--target", target.source, "--out", str(tmp_path), "--num-shards", "3"]
    assert main(argv) == 2
    assert "another kind" in capsys.readouterr().err


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="num_runs"):
        DraftTrainingConfig(num_runs=0)
    with pytest.raises(ConfigError, match="init_from"):
        DraftTrainingConfig(kind="eagle3", init_from="default")
