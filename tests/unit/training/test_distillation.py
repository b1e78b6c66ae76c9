"""Distilling a draft: the corpus is the target's own text, and what is written is what was trained."""

import json
import math
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from forerun.core.errors import ConfigError, ModelLoadError, VocabMismatchError
from forerun.core.rows import Rows
from forerun.models.draft import MANIFEST_FILE, load_draft
from forerun.models.load import build_decoder
from forerun.models.runner import build_runner
from forerun.training.distillation.batches import RoundConfig, TextBatches
from forerun.training.distillation.corpus import make_runner, read_shard, sample_shard, write_shard
from forerun.training.distillation.loss import distillation_loss, greedy_agreement
from forerun.training.distillation.sampling import SampleRequest, sample_texts
from forerun.training.distillation.student import Student
from forerun.training.distillation.train import DraftTrainingConfig, evenly_spaced, sample_corpus, train_draft
from forerun.training.distillation.vocabulary import choose_vocab


@pytest.fixture(scope="module")
def texts(target, training_config):
    return sample_shard(
        target, make_runner(target, training_config.corpus), training_config.corpus, 0, layer_ids=range(4)
    )


def make_batches(texts, *, vocab_ids=None, rounds=None):
    vocab_ids = np.arange(257) if vocab_ids is None else vocab_ids
    return TextBatches(
        texts, vocab_ids=vocab_ids, vocab_size=257, batch_tokens=200, rounds=rounds or RoundConfig(), seed=0
    )


def collate(batches, texts, *, has_states=True):
    return batches.collate(texts, rng=random.Random(0), has_states=has_states)


@pytest.fixture(scope="module")
def trained(target, training_config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("draft")
    stages = []
    manifest = train_draft(target, directory, training_config, report=lambda stage, *_: stages.append(stage))
    return directory, manifest, stages


def test_greedy_samples_are_the_targets_argmax(target, training_config):
    runner = make_runner(target, training_config.corpus)
    prompts = [[1, 2, 3], [9, 8, 7, 6], [5], [30, 31]]
    requests = [SampleRequest(prompt=prompt, temperature=0.0, max_tokens=6) for prompt in prompts]
    found = sample_texts(runner, requests, eos_ids=frozenset(), layer_ids=[3, 1], generator=torch.Generator())
    decoder = build_decoder(target)
    for prompt, text in zip(prompts, found, strict=True):
        whole = list(prompt) + list(text.tokens)
        with torch.no_grad():
            logits = decoder(torch.tensor([whole]))[0, len(prompt) - 1 : -1]
        best = logits.max(dim=-1).values
        chosen = logits.gather(1, torch.tensor(text.tokens)[:, None])[:, 0]
        assert (best - chosen).max() < 0.05, "int8 weights move near ties only"
        assert text.tokens == tuple(text.top_ids[:, 0])
        assert np.all(np.diff(text.top_logprobs.astype(np.float32), axis=1) <= 0)
        again = make_runner(target, training_config.corpus)
        again.forward(Rows.chains([(0, 0, whole[:-1])]))
        states = again.read_states(0, 0, len(whole) - 1, layer_ids=[3, 1])
        assert np.array_equal(text.states, states.astype(np.float16))


def test_a_shard_is_a_function_of_its_index(target, training_config, texts, tmp_path):
    runner = make_runner(target, training_config.corpus)
    again = sample_shard(target, runner, training_config.corpus, 0, layer_ids=range(4))
    other = sample_shard(target, runner, training_config.corpus, 1, layer_ids=[])
    assert [text.tokens for text in again] == [text.tokens for text in texts]
    assert [text.tokens for text in other] != [text.tokens for text in texts]
    write_shard(tmp_path / "shard.npz", texts)
    for written, read in zip(texts, read_shard(tmp_path / "shard.npz"), strict=True):
        assert (read.prompt, read.tokens) == (written.prompt, written.tokens)
        assert np.array_equal(read.top_ids, written.top_ids)
        assert np.array_equal(read.states, written.states)


@pytest.mark.parametrize("has_states", [True, False])
def test_batches_align_every_sampled_token_with_the_place_before_it(texts, has_states):
    vocab_ids = np.arange(0, 257, 2)
    batch = collate(make_batches(texts, vocab_ids=vocab_ids), texts[:3], has_states=has_states)
    assert batch.num_tokens == sum(len(text.tokens) for text in texts[:3])
    place = 0
    for row, text in enumerate(texts[:3]):
        whole = text.prompt + text.tokens
        for offset in range(len(text.tokens)):
            column = int(batch.where[1][place])
            assert int(batch.where[0][place]) == row
            position = int(batch.positions[row, column])
            assert whole[position] == batch.token_ids[row, column]
            assert position == len(text.prompt) + offset - 1
            kept = batch.probs[place] > 0
            expected = [token for token in text.top_ids[offset] if token % 2 == 0]
            assert vocab_ids[batch.columns[place][kept]].tolist() == expected
            place += 1


def test_a_round_sees_every_earlier_position_once(texts):
    """The states of the tokens before the round, and its own of the round: together the text up to the token."""
    batch = collate(make_batches(texts, rounds=RoundConfig(max_tokens=4)), texts[:3])
    num_states = batch.states.shape[1]
    lengths = set()
    for row, text in enumerate(texts[:3]):
        first = len(text.prompt) - 1
        for column in range(len(text.tokens)):
            seen = torch.nonzero(batch.mask[row, 0, column])[:, 0].tolist()
            states = [place for place in seen if place < num_states]
            own = [place - num_states + first for place in seen if place >= num_states]
            assert states + own == list(range(first + column + 1))
            assert 1 <= len(own) <= 4
            lengths.add(len(own))
    assert lengths == {1, 2, 3, 4}


def test_batches_without_states_are_causal(texts):
    batch = collate(make_batches(texts), texts[:3], has_states=False)
    assert batch.states.shape[1] == 0
    for row, text in enumerate(texts[:3]):
        stop = len(text.prompt) + len(text.tokens) - 1
        assert torch.equal(batch.mask[row, 0, :stop, :stop], torch.ones(stop, stop, dtype=torch.bool).tril())


def test_an_epoch_holds_every_text_once(texts):
    batches = make_batches(texts)
    steps = batches.batches_per_epoch
    first = sum(batches.at(step).num_tokens for step in range(steps))
    assert first == sum(len(text.tokens) for text in texts)
    assert torch.equal(batches.at(0).token_ids, batches.at(0).token_ids)


def test_loss_is_least_at_the_targets_law(texts):
    batch = collate(make_batches(texts), texts[:2])
    truth = torch.full((batch.num_tokens, 257), -30.0).scatter_(1, batch.columns, batch.probs.log())
    best = distillation_loss(truth, batch, greedy_share=0.0)
    assert best < distillation_loss(torch.zeros_like(truth), batch, greedy_share=0.0)
    assert best < distillation_loss(truth * 1.3, batch, greedy_share=0.0)
    assert best < distillation_loss(truth * 0.7, batch, greedy_share=0.0)
    uniform = distillation_loss(torch.zeros_like(truth), batch, greedy_share=1.0)
    assert float(uniform) == pytest.approx(math.log(257), rel=1e-4)
    assert greedy_agreement(truth, batch) == 1.0
    assert greedy_agreement(-truth, batch) < 0.1


def test_vocabulary_is_by_probability_and_keeps_the_ends(texts):
    chosen = choose_vocab(texts, size=40, vocab_size=257, always=[256])
    assert len(chosen) == 40
    assert 256 in chosen
    assert np.all(np.diff(chosen) > 0)
    mass = np.zeros(257)
    for text in texts:
        np.add.at(mass, text.top_ids, np.exp(text.top_logprobs.astype(np.float64)))
    left_out = np.setdiff1d(np.arange(257), chosen)
    assert mass[left_out].max() <= np.sort(mass[np.setdiff1d(chosen, [256])])[0]


@pytest.mark.parametrize("has_states", [True, False])
def test_a_student_of_all_layers_and_tokens_is_the_target(target, texts, has_states):
    student = Student(target, layer_ids=range(4), vocab_ids=np.arange(257))
    decoder = build_decoder(target)
    for text in texts[:4]:
        with torch.no_grad():
            ours = student(collate(make_batches(texts), [text], has_states=has_states))
            theirs = decoder(torch.tensor([text.prompt + text.tokens]))[0, len(text.prompt) - 1 : -1]
        assert (ours - theirs).abs().max() < 0.1 * theirs.abs().max(), "8-bit rows are the only difference"
    assert not any(parameter.requires_grad for name, parameter in student.named_parameters() if "embed" in name)


def test_training_writes_what_a_runner_loads(target, training_config, trained):
    directory, manifest, stages = trained
    assert set(stages) == {"sample", "train", "measure"}
    assert json.loads(json.dumps(manifest)) == json.loads((directory / MANIFEST_FILE).read_text())
    draft = load_draft(str(directory), target)
    assert draft.config.num_layers == 2
    assert draft.state_layer_ids == tuple(manifest["layer_ids"])
    assert len(draft.vocab_ids) == training_config.vocab_size
    runner = build_runner(
        draft.config, draft.tensor, dtype="float32", num_sequences=1, capacity=64, vocab_ids=draft.vocab_ids
    )
    logits = runner.forward(Rows.chains([(0, 0, list(range(30)))]))
    assert logits.shape == (30, training_config.vocab_size)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("lent", [[0], [0, 4]])
def test_a_draft_that_reads_layers_which_are_not_there_is_refused(target, trained, tmp_path, lent):
    directory, manifest, _ = trained
    copied = tmp_path / "draft"
    shutil.copytree(directory, copied, ignore=shutil.ignore_patterns("work"))
    (copied / MANIFEST_FILE).write_text(json.dumps(manifest | {"state_layer_ids": lent}))
    with pytest.raises(ModelLoadError, match="reads keys and values of the layers"):
        load_draft(str(copied), target)


def test_training_starts_from_another_draft(target, training_config, trained, tmp_path):
    directory, _, _ = trained
    config = replace(training_config, init_from=str(directory), num_steps=1, learning_rate=1e-9)
    corpus = tmp_path / "work" / "corpus"
    shutil.copytree(directory / "work" / "corpus", corpus)
    manifest = train_draft(target, tmp_path, config, report=lambda *_: None)
    assert manifest["initial_draft"] == json.loads((directory / MANIFEST_FILE).read_text())
    first, second = load_draft(str(directory), target), load_draft(str(tmp_path), target)
    name = "layers.1.mlp.up_proj.weight"
    assert np.abs(first.tensor(name) - second.tensor(name)).max() < 1e-6
    with pytest.raises(ConfigError, match="init_from"):
        train_draft(target, tmp_path, replace(config, layer_ids=(1, 2)), report=lambda *_: None)


def test_training_again_resumes_to_the_same_draft(target, training_config, trained, tmp_path):
    _, manifest, _ = trained
    sample_corpus(
        target, tmp_path / "work" / "corpus", training_config, report=lambda *_: None, worker=1, num_workers=2
    )
    again = train_draft(target, tmp_path, training_config, report=lambda *_: None)
    assert again["corpus_sha256"] == manifest["corpus_sha256"]
    assert again["final_loss_nats"] == manifest["final_loss_nats"]


def test_a_draft_of_another_target_is_refused(target, trained, tmp_path):
    directory, manifest, _ = trained
    for name in ("draft.safetensors", MANIFEST_FILE):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(manifest | {"vocab_digest": "0" * 64}))
    with pytest.raises(VocabMismatchError, match="train-draft"):
        load_draft(str(tmp_path), target)
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(manifest | {"hidden_size": 64}))
    with pytest.raises(ModelLoadError, match="width 64"):
        load_draft(str(tmp_path), target)
    (tmp_path / "draft.safetensors").write_bytes(b"short")
    with pytest.raises(ModelLoadError, match="can't be read"):
        load_draft(str(tmp_path), target)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="num_shards"):
        DraftTrainingConfig(num_shards=1)
    with pytest.raises(ConfigError, match="greedy_share"):
        DraftTrainingConfig(greedy_share=1.5)


def test_a_draft_starts_from_layers_spread_over_the_target():
    assert evenly_spaced(30, count=4) == (0, 10, 20, 29)
    assert evenly_spaced(5, count=4) == (0, 2, 3, 4)
    assert evenly_spaced(3, count=4) == (0, 1, 2)
