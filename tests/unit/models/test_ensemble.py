"""Ensemble checkpoints: what loads, what is refused in words, and the average itself."""

import json
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from forerun.core.errors import CheckpointError, ModelLoadError, VocabMismatchError
from forerun.core.rows import Rows
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.draft import load_draft
from forerun.models.export import save_huggingface
from forerun.models.load import build_decoder, load_checkpoint
from forerun.models.runner import build_target
from forerun.models.tokenizer import Tokenizer
from forerun.nn.law_average import average_rows
from forerun.pretraining.ensemble import average_law


def write_member(folder, *, seed=0, words=20, max_len=32, as_run=True):
    config = DecoderConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        max_len=max_len,
    )
    torch.manual_seed(seed)
    vocab = {f"w{index}": index for index in range(words)} | {"<end>": words}
    tokenizer = Tokenizer(Backend(WordLevel(vocab, unk_token="w0")), eos_ids=[words])
    save_huggingface(Decoder(config), folder / "model" if as_run else folder, tokenizer=tokenizer)
    if as_run:
        (folder / "run.json").write_text("{}")


def write_file(folder, **changes):
    content = {"kind": "ensemble", "average": "probability", "members": ["../one", "../two"]} | changes
    folder.mkdir(exist_ok=True)
    (folder / "ensemble.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path):
    write_member(tmp_path / "one", seed=0)
    write_member(tmp_path / "two", seed=1, max_len=20, as_run=False)
    return write_file(tmp_path / "both")


def test_it_loads_as_one_model_with_the_shortest_context(folder):
    both = load_checkpoint(folder)
    assert [member.config.max_len for member in both.ensemble.members] == [32, 20]
    assert (both.config.max_len, both.ensemble.average, both.eos_ids) == (20, "probability", frozenset({20}))
    target = build_target(both, dtype="float32", num_sequences=1, capacity=20)
    rows = Rows.chains([(0, 0, [3, 1, 4])])
    laws = [
        torch.tensor(build_target(member, dtype="float32", num_sequences=1, capacity=20).forward(rows)).softmax(-1)
        for member in both.ensemble.members
    ]
    mixture = (laws[0] + laws[1]) / 2
    np.testing.assert_allclose(target.forward(rows), mixture.log(), atol=1e-5)


def test_its_first_member_drafts_with_the_keys_and_values_that_it_has(folder):
    both = load_checkpoint(folder)
    draft = load_draft("self", both)
    assert draft.state_layer_ids == (0, 1)
    target = build_target(both, dtype="float32", num_sequences=1, capacity=20)
    target.forward(Rows.chains([(0, 0, [3, 1, 4, 1])]))
    member = build_target(both.ensemble.members[0], dtype="float32", num_sequences=1, capacity=20)
    member.forward(Rows.chains([(0, 0, [3, 1, 4, 1])]))
    ours, theirs = (runner.read_states(0, 0, 4, layer_ids=draft.state_layer_ids) for runner in (target, member))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"average": "median"}, r"average='median': must be one of probability, logit"),
        ({"members": []}, r"members=\[\]: must be a list of one folder"),
        ({"members": "one"}, "must be a list"),
        ({"members": [1]}, "cannot be read"),
    ],
)
def test_a_file_that_says_no_ensemble_is_refused(folder, changes, message):
    write_file(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_damaged_file_is_refused(folder):
    (folder / "ensemble.json").write_text('{"average": "logit"')
    with pytest.raises(CheckpointError, match=r"ensemble\.json: cannot be read.*write it anew"):
        load_checkpoint(folder)


def test_a_member_that_is_gone_or_not_finished_is_named(folder):
    shutil.rmtree(folder.parent / "one" / "model")
    with pytest.raises(ModelLoadError, match=r"one: is a run that is not finished"):
        load_checkpoint(folder)
    shutil.rmtree(folder.parent / "one")
    with pytest.raises(ModelLoadError, match=r"its member .*one is missing"):
        load_checkpoint(folder)


def test_members_with_other_tokens_are_refused(folder):
    write_member(folder.parent / "two", words=21, as_run=False)
    with pytest.raises(VocabMismatchError, match=r"the vocabulary of .*two.* differs"):
        load_checkpoint(folder)


def test_an_ensemble_is_no_member_no_draft_and_no_decoder(folder):
    nested = write_file(folder.parent / "nested", members=["../both"])
    with pytest.raises(ModelLoadError, match="is an ensemble itself"):
        load_checkpoint(nested)
    with pytest.raises(ModelLoadError, match="name one of its members"):
        build_decoder(load_checkpoint(folder))
    draft = load_draft(str(folder), load_checkpoint(folder.parent / "one"))
    with pytest.raises(ModelLoadError, match="name one of its members"):
        draft.tensor("norm.weight")


@pytest.mark.parametrize("average", ["probability", "logit"])
@pytest.mark.parametrize("num_members", [1, 2, 5])
@pytest.mark.parametrize("vocab_size", [97, 1024, 1031])
def test_an_average_is_that_of_the_trainer_and_does_not_see_its_neighbours(average, num_members, vocab_size):
    logits = 4 * np.random.default_rng(vocab_size).standard_normal((num_members, 9, vocab_size)).astype(np.float32)
    averaged = average_rows(logits, average=average)
    expected = average_law(list(torch.from_numpy(logits).double()), average=average)
    np.testing.assert_allclose(torch.from_numpy(averaged).double().log_softmax(-1), expected, atol=1e-5)
    for first, stop in ((0, 1), (2, 7), (8, 9)):
        assert np.array_equal(average_rows(logits[:, first:stop], average=average), averaged[first:stop])


def test_an_average_stays_finite_where_a_probability_is_none():
    logits = np.array([[[0.0, -500.0, 3.0]], [[0.0, -500.0, 3.0]]], np.float32)
    assert np.isfinite(average_rows(logits, average="probability")).all()
