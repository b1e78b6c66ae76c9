"""EAGLE-3 heads: their runner against a slow one, their files in every spelling, and the hidden states they read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from simulated.byte_model import VOCAB_SIZE, save_byte_model
from simulated.heads import SlowHead, random_head_weights, save_random_head
from simulated.recording import TracingRecorder

from forerun.core.env import cpu_info
from forerun.core.errors import ConfigError, ModelLoadError, RequestError, VocabMismatchError
from forerun.core.features import FeatureReader, FeatureSource
from forerun.core.rows import Rows
from forerun.models.config import DecoderConfig
from forerun.models.device_runner import DeviceRunner
from forerun.models.draft import load_draft
from forerun.models.draft_runner import build_draft
from forerun.models.eagle3 import Eagle3Config
from forerun.models.eagle3_file import read_eagle3
from forerun.models.eagle3_runner import Eagle3Runner, fill_head
from forerun.models.load import build_decoder, load_checkpoint
from forerun.models.runner import build_target
from forerun.models.torch_runner import TorchRunner

LAYER = DecoderConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_len=64,
)
PLAIN = Eagle3Config(layer=LAYER, layer_ids=(1, 4, 6), target_hidden_size=20, draft_vocab_size=30)
HEADS = {
    "plain": PLAIN,
    "norms": replace(PLAIN, norm_before_residual=True, norm_before_fc=True),
    "other norms": replace(PLAIN, fc_norm=True, norm_output=True),
    "qk-norm, two layers": replace(PLAIN, layer=replace(LAYER, family="qwen3", qk_norm=True), layer_ids=(2, 5)),
}
TEXT = np.random.default_rng(3).integers(0, 50, 12).tolist()


@pytest.fixture(params=HEADS)
def pair(request):
    """A runner and its slow twin."""
    config = HEADS[request.param]
    weights = random_head_weights(config)
    head = fill_head(config, weights.__getitem__, dtype=torch.float32)
    return Eagle3Runner(head, num_sequences=2, capacity=32), SlowHead(config=config, weights=weights)


def features_of(slow, count, *, seed=7):
    shape = (count, len(slow.config.layer_ids), slow.config.target_hidden_size)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_right(logits, slow, tokens, features):
    """Compare the logits of the last rows of a text."""
    np.testing.assert_allclose(logits, slow.logits(tokens, features)[-len(logits) :], atol=3e-5, rtol=0)


def test_a_text_with_the_targets_states_matches_the_slow_head(pair):
    runner, slow = pair
    features = features_of(slow, 11)
    assert isinstance(runner, FeatureReader)
    for sequence in (1, 0):
        runner.take_features(sequence, 0, features)
        logits = runner.forward(Rows.chains([(sequence, 1, TEXT[1:])]))
        assert np.ptp(logits, axis=1).min() > 1  # the comparison means something
        assert_right(logits, slow, TEXT, features)
    last = runner.forward(Rows.chains([(0, 8, TEXT[8:])]), logit_rows=np.array([3]))
    assert_right(last, slow, TEXT, features)


def test_rounds_of_drafting_match_the_slow_head(pair):
    """Drafting goes on from the head's own states; after a verification the target's take their place."""
    runner, slow = pair
    features = features_of(slow, 11)
    runner.take_features(0, 0, features[:5])
    assert_right(runner.forward(Rows.chains([(0, 1, TEXT[1:6])])), slow, TEXT[:6], features[:5])
    for stop in (7, 8):
        logits = runner.forward(Rows.chains([(0, stop - 1, TEXT[stop - 1 : stop])]))
        assert_right(logits, slow, TEXT[:stop], features[:5])
    runner.take_features(0, 5, features[5:8])  # tokens 5 to 7 were accepted, 8 is the target's own
    assert_right(runner.forward(Rows.chains([(0, 6, TEXT[6:9])])), slow, TEXT[:9], features[:8])
    assert_right(runner.forward(Rows.chains([(0, 9, TEXT[9:10])])), slow, TEXT[:10], features[:8])


def branch(tokens, *, prefix, first_slot, num_before):
    """The last row of a branch of a tree whose slots lie side by side."""
    slots = np.arange(first_slot, first_slot + num_before + 1)
    return Rows(
        sequences=np.zeros(1, np.int64),
        token_ids=np.array(tokens[num_before : num_before + 1]),
        positions=np.array([prefix + num_before]),
        slots=slots[-1:],
        lengths=np.array([prefix]),
        ancestors=slots[None, :],
        num_ancestors=np.array([num_before + 1]),
    )


def test_branches_of_a_tree_and_moved_slots_are_chains(pair):
    runner, slow = pair
    features, branches = features_of(slow, 5), ([9, 3, 4], [7, 3, 4])
    runner.take_features(0, 0, features)
    runner.forward(Rows.chains([(0, 1, TEXT[1:6])]))
    for depth in range(3):
        rows = [
            branch(tokens, prefix=6, first_slot=10 + 6 * place, num_before=depth)
            for place, tokens in enumerate(branches)
        ]
        logits = runner.forward(Rows.concatenate(rows))
        for row, tokens in zip(logits, branches, strict=True):
            assert_right(row[None], slow, [*TEXT[:6], *tokens[: depth + 1]], features)
    runner.move_slots(0, [16, 17], [6, 7])
    logits = runner.forward(Rows.chains([(0, 8, [11])]))
    assert_right(logits, slow, [*TEXT[:6], 7, 3, 11], features)
    assert np.abs(logits[0] - slow.logits([*TEXT[:6], 9, 3, 11], features)[-1]).max() > 1e-3  # the other branch


def test_the_first_token_is_seen_by_no_other(pair):
    """Published heads pair each token with the state before it; the first has none."""
    runner, slow = pair
    features = features_of(slow, 3)
    alone = runner.forward(Rows.chains([(0, 0, TEXT[:1])]))
    assert np.isfinite(alone).all()
    runner.take_features(0, 0, features)
    assert_right(runner.forward(Rows.chains([(0, 1, TEXT[1:4])])), slow, TEXT[:4], features)
    with pytest.raises(RequestError, match="slot"):
        runner.take_features(0, 31, features)


@pytest.fixture(scope="module")
def target_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("target")
    save_byte_model(directory, num_layers=4)
    return directory


@pytest.fixture(scope="module")
def target(target_directory):
    return load_checkpoint(target_directory)


@pytest.fixture
def head_directory(tmp_path, target):
    save_random_head(tmp_path / "head", target.config, layer_ids=(1, 2, 3), vocab_ids=range(10, 200, 2))
    return tmp_path / "head"


def rewritten(directory, *, rename=None, drop=(), config=None, pickled=False):
    """Write a head's files anew with changes."""
    tensors = load_file(directory / "model.safetensors")
    tensors = {(rename or str)(name): tensor for name, tensor in tensors.items() if name not in drop}
    (directory / "model.safetensors").unlink()
    if pickled:
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        save_file(tensors, directory / "model.safetensors")
    file = directory / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(config(values) if config else values))
    return directory


def speculators(values):
    """The spelling of the library `speculators`."""
    outer = {name: values.pop(name) for name in ("draft_vocab_size", "eagle_aux_hidden_state_layer_ids")}
    return outer | {
        "speculators_model_type": "eagle3",
        "architectures": ["Eagle3Speculator"],
        "transformer_layer_config": values,
        "norm_before_residual": False,
    }


def sglang(values):
    """The spelling of SGLang, which names layers by what leaves them."""
    del values["eagle_aux_hidden_state_layer_ids"]
    assert values["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]
    return values


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"config": speculators, "rename": lambda name: name.replace("midlayer.", "layers.0.")},
        {"config": sglang},
        {"pickled": True},
        {"drop": ("t2d",)},
    ],
    ids=["as written", "speculators", "sglang", "pickled", "without t2d"],
)
def test_every_published_spelling_is_one_head(head_directory, target, changes):
    expected = load_file(head_directory / "model.safetensors")
    draft = load_draft(str(rewritten(head_directory, **changes)), target)
    assert draft.eagle3 is not None
    assert draft.eagle3.layer_ids == (1, 2, 3)
    assert draft.vocab_ids.tolist() == list(range(10, 200, 2))
    for name in ("fc.weight", "midlayer.self_attn.q_proj.weight", "lm_head.weight"):
        assert np.array_equal(draft.tensor(name), expected[name].numpy())


def test_a_vocabulary_in_another_order_and_borrowed_weights(head_directory, target):
    tensors = load_file(head_directory / "model.safetensors")
    order = torch.randperm(95, generator=torch.Generator().manual_seed(1))
    ids = tensors["d2t"] + torch.arange(95)
    tensors |= {"d2t": ids[order] - torch.arange(95), "lm_head.weight": tensors["lm_head.weight"][order].contiguous()}
    embedding = tensors.pop("embed_tokens.weight")
    save_file(tensors, head_directory / "model.safetensors")
    draft = load_draft(str(head_directory), target)
    assert draft.vocab_ids.tolist() == list(range(10, 200, 2))
    assert torch.equal(torch.from_numpy(draft.tensor("lm_head.weight"))[order], tensors["lm_head.weight"])
    assert np.array_equal(draft.tensor("embed_tokens.weight"), target.tensors.tensor("embed_tokens.weight"))
    assert not np.array_equal(draft.tensor("embed_tokens.weight"), embedding.numpy())

    whole = {name: tensor for name, tensor in tensors.items() if name not in {"d2t", "t2d", "lm_head.weight"}}
    save_file(whole, head_directory / "model.safetensors")
    values = json.loads((head_directory / "config.json").read_text())
    (head_directory / "config.json").write_text(json.dumps(values | {"draft_vocab_size": VOCAB_SIZE}))
    draft = load_draft(str(head_directory), target)
    assert draft.vocab_ids is None
    assert np.array_equal(draft.tensor("lm_head.weight"), target.tensors.tensor("embed_tokens.weight"))  # it is tied


def with_values(**changes):
    return {"config": lambda values: values | changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (with_values(vocab_size=300), VocabMismatchError, "300 tokens"),
        (with_values(target_hidden_size=64), ModelLoadError, "width 64"),
        (with_values(num_hidden_layers=2), ModelLoadError, "2 layers"),
        (with_values(draft_vocab_size=96), ModelLoadError, "d2t and t2d"),
        (with_values(eagle_aux_hidden_state_layer_ids=[1, 2, 4]), ModelLoadError, "from 0 to 3"),
        (with_values(eagle_aux_hidden_state_layer_ids=None, eagle_config=None), ModelLoadError, "does not say"),
        (with_values(eagle_config={"use_aux_hidden_state": False}), ModelLoadError, "EAGLE-2"),
        (with_values(speculators_model_type="dflash"), ModelLoadError, "dflash"),
        ({"drop": ("d2t",)}, ModelLoadError, "d2t is missing"),
        ({"drop": ("lm_head.weight",)}, ModelLoadError, "lm_head"),
        ({"drop": ("fc.weight",)}, ModelLoadError, "fc.weight"),
        ({"rename": lambda name: name.replace("hidden_norm", "other")}, ModelLoadError, "hidden_norm"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(head_directory, target, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        read_eagle3(rewritten(head_directory, **changes), target)
    assert "\n" not in str(caught.value)


def test_maps_that_contradict_each_other_and_cut_off_files_are_refused(head_directory, target):
    tensors = load_file(head_directory / "model.safetensors")
    tensors["t2d"][11] = True
    save_file(tensors, head_directory / "model.safetensors")
    with pytest.raises(ModelLoadError, match="d2t and t2d"):
        read_eagle3(head_directory, target)
    (head_directory / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelLoadError, match="can't be read"):
        read_eagle3(head_directory, target)


def test_a_pickle_that_would_run_code_is_refused(head_directory, target):
    (head_directory / "model.safetensors").unlink()
    torch.save({"fc.weight": print}, head_directory / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="can't be read"):
        read_eagle3(head_directory, target)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_targets_keep_what_enters_their_layers(target, dtype):
    """Whatever the parts a text is read in, and whichever blocks it lies in; and nothing before it is asked for."""
    if dtype == "int8" and not cpu_info().has_int8_dot:
        pytest.skip("this CPU has no exact int8 products")
    runner = build_target(target, dtype=dtype, num_sequences=2, capacity=64)
    assert isinstance(runner, FeatureSource)
    text = [5, 80, 33, 7, 200, 41, 9]
    before = runner.forward(Rows.chains([(1, 0, text)]))
    assert runner.read_features(1, 0, 7).shape == (7, 0, target.config.hidden_size)
    runner.keep_features([3, 0])
    if dtype == "int8":
        runner.set_blocks(1, [2, 0])
    runner.forward(Rows.chains([(1, 0, text[:3])]))
    after = runner.forward(Rows.chains([(0, 0, [1]), (1, 3, text[3:])]))
    np.testing.assert_allclose(after[1:], before[3:], atol=1e-5)
    found = runner.read_features(1, 0, 7)
    runner.keep_features([3, 0])
    assert np.array_equal(runner.read_features(1, 0, 7), found)
    entering = {}
    with torch.no_grad():
        build_decoder(target).hidden_states(torch.tensor([text]), on_layer=lambda layer, x: entering.update({layer: x}))
    for column, layer in enumerate([3, 0]):
        np.testing.assert_allclose(found[:, column], entering[layer][0], atol=0.02 if dtype == "int8" else 1e-5)
    assert np.abs(found[:, 0] - found[:, 1]).max() > 0.1
    runner.write_features(0, 2, found)
    assert np.array_equal(runner.read_features(0, 2, 9), found)
    for layer_ids in ([1, 1], [4], [-1]):
        with pytest.raises(ConfigError, match="from 0 to 3"):
            runner.keep_features(layer_ids)


def test_passes_of_fixed_shape_keep_them_too(target):
    """Replayed from traces: what is kept follows the slots of each pass, and what was recorded before is not used."""
    decoder = build_decoder(target)
    device = DeviceRunner(decoder, num_sequences=2, capacity=64, recorder=TracingRecorder())
    twin = TorchRunner(decoder, num_sequences=2, capacity=64)
    assert isinstance(device, FeatureSource)
    text = [5, 80, 33, 7, 200, 41, 9]
    device.forward(Rows.chains([(1, 0, text[:2])]))
    assert device.read_features(1, 0, 2).shape == (2, 0, target.config.hidden_size)
    for runner in (device, twin):
        runner.keep_features([3, 0])
        for start in (0, 2, 4):
            runner.forward(Rows.chains([(1, start, text[start : start + 2])]))
        runner.forward(Rows.chains([(0, 0, [9] * 40)]))  # too wide for a graph
    for sequence, length in ((1, 6), (0, 40)):
        found = device.read_features(sequence, 0, length)
        np.testing.assert_allclose(found, twin.read_features(sequence, 0, length), atol=1e-5)
    assert np.abs(device.read_features(1, 0, 6)).min(axis=(1, 2)).max() > 0
    device.write_features(0, 3, device.read_features(1, 0, 6))
    assert np.array_equal(device.read_features(0, 3, 9), device.read_features(1, 0, 6))


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 0.15), ("int8", 0.15)])
def test_a_head_runs_in_narrow_formats_too(head_directory, target, dtype, atol):
    if dtype == "int8" and not cpu_info().has_int8_dot:
        pytest.skip("this CPU has no exact int8 products")
    draft = load_draft(str(head_directory), target)
    features = np.random.default_rng(0).standard_normal((4, 3, 32)).astype(np.float32)
    logits = []
    for one in ("float32", dtype):
        runner = build_draft(draft, dtype=one, num_sequences=1, capacity=32)
        assert isinstance(runner, FeatureReader)
        runner.take_features(0, 0, features)
        logits.append(runner.forward(Rows.chains([(0, 1, [4, 5, 6, 7])])))
    assert logits[0].shape == (4, 95)
    assert not np.array_equal(logits[1], logits[0])
    np.testing.assert_allclose(logits[1], logits[0], atol=atol)
