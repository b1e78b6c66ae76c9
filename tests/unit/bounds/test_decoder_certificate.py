"""Certificates of trained decoders: the verifier's decoder is ours, the best of several is kept, tampering shows."""

import ast
import hashlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from forerun.bounds.language import decoder_verifier as verifier
from forerun.bounds.language.decoder_certify import (
    DecoderCandidate,
    DecoderOptions,
    TokenText,
    certify_decoders,
)
from forerun.bounds.language.decoder_fit import DecoderFitConfig, RoundedDecoder, base_tensors, decoder_shape
from forerun.bounds.language.decoder_message import (
    DECODER_GRID,
    DecoderMember,
    DecoderMessage,
    TensorSteps,
    encode_decoder_message,
)
from forerun.core.errors import ConfigError
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder

from .conftest import rewrite

SOURCE = Path(verifier.__file__)
SHAPE, VOCAB_SIZE = (16, 40, 2, 1), 40
OPTIONS = DecoderOptions(window=32, fit=DecoderFitConfig(step_share=3.0, num_steps=6, batch_windows=2))


def fresh(seed: int) -> Decoder:
    torch.manual_seed(seed)
    hidden, intermediate, layers, heads = SHAPE
    return Decoder(
        DecoderConfig(
            vocab_size=VOCAB_SIZE, hidden_size=hidden, intermediate_size=intermediate, num_layers=layers,
            num_heads=heads, num_kv_heads=heads, head_dim=hidden // heads, max_len=64,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def text():
    source = np.random.default_rng(0)
    return TokenText(ids=np.minimum(source.geometric(0.2, 8000), VOCAB_SIZE) - 1, num_bytes=15_000)


@pytest.fixture(scope="module")
def made(text, tmp_path_factory):
    """Return the certificate and what was said of a model and of an ensemble of two."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("decoder") / "made.zip"
    first, second = fresh(0), fresh(1)
    candidates = [
        DecoderCandidate(name="pair", decoders=(first, second), average="logit"),
        DecoderCandidate(name="alone", decoders=(first,), average="probability"),
    ]
    return path, certify_decoders(candidates, text, path, OPTIONS)


def reason(path, text, base=None):
    """Return why a certificate is rejected."""
    with pytest.raises(ValueError) as caught:
        verifier.verify(path, text.ids, text.num_bytes, base)
    return str(caught.value)


def test_verifiers_decoder_computes_what_ours_does():
    decoder, ids = fresh(2), torch.randint(0, VOCAB_SIZE, (3, 20))
    with torch.no_grad():
        expected = decoder.double()(ids).numpy()
    found = verifier.next_logits(SHAPE, base_tensors(decoder), ids.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_decoded_weights_are_those_that_were_trained(rank):
    decoder = fresh(3)
    generator = torch.Generator().manual_seed(0)
    rounded = RoundedDecoder(decoder, DECODER_GRID, step_share=0.8, rank=rank, generator=generator)
    with torch.no_grad():
        for values in rounded.parts.values():
            values.add_(torch.randn(values.shape, generator=generator) * 0.05)
    ids = torch.randint(0, VOCAB_SIZE, (2, 12))
    message = DecoderMessage(
        smoothing=2.0**-9, window=32, average="logit", rank=rank, vocab_size=VOCAB_SIZE, members=(rounded.message(),)
    )
    code = encode_decoder_message(message, DECODER_GRID)
    base = dict(base_tensors(decoder)) if rank else None
    model, ledger = verifier.decode(code, DECODER_GRID.as_json(), base)
    bits = sum(ledger.values()) - ledger["tokenizer"]
    assert abs(8 * len(code) - bits) < 16
    assert (ledger["embed_tokens"] == 0) == (rank > 0)
    with torch.no_grad():
        np.testing.assert_allclose(
            verifier.next_logits(*model["members"][0], ids.numpy()), rounded(ids).numpy(), atol=1e-4
        )


@pytest.mark.parametrize("average", ["probability", "logit"])
def test_scores_and_entropies_are_of_one_law_per_place(average):
    """Every token but the first is scored once, under a law that sums to 1 and ignores what comes later."""
    members = [(SHAPE, dict(base_tensors(fresh(seed)))) for seed in (4, 5)]
    model = {"windows": 32, "smoothings": 0.01, "averages": average, "vocab_size": VOCAB_SIZE, "members": members}
    ids = np.random.default_rng(1).integers(0, VOCAB_SIZE, 70)
    scores, entropies = verifier.score_tokens(model, ids)
    assert len(scores) == len(entropies) == 69
    assert scores.max() <= math.log2(VOCAB_SIZE / 0.01)
    found = []
    for token in range(VOCAB_SIZE):
        changed = np.concatenate([ids[:50], [token], ids[51:]])
        again, spread = verifier.score_tokens(model, changed)
        np.testing.assert_allclose(again[:49], scores[:49], atol=1e-12)
        np.testing.assert_allclose(spread[:50], entropies[:50], atol=1e-12)
        found.append(again[49])
    law = 2.0 ** -np.array(found)
    assert law.sum() == pytest.approx(1, abs=1e-9)
    assert entropies[49] == pytest.approx(-(law * np.log2(law)).sum(), abs=1e-9)


def test_least_bound_is_chosen_and_verified(made, text):
    path, result = made
    bounds = {item["name"]: item["token_bound"] for item in result["candidates"]}
    assert result["chosen"] == min(bounds, key=bounds.__getitem__) == "alone"
    found = verifier.verify(path, text.ids, text.num_bytes)
    assert found["token_bound"] == pytest.approx(bounds["alone"], abs=1e-9)
    assert found["num_tokens"] == len(text.ids) - 1
    pair, alone = result["candidates"]
    assert pair["code_length_bits"] > 1.5 * alone["code_length_bits"]


CHANGES = {
    "smaller bound": (lambda m: m["claims"].__setitem__("token_bound", 1.0), "token_bound is"),
    "fewer bits": (lambda m: m["claims"].__setitem__("code_length_bits", 0.0), "code_length_bits is"),
    "other smoothings": (lambda m: m["grid"].__setitem__("smoothings", [0.5]), "grid is not the one"),
    "cheaper line": (lambda m: m["claims"]["ledger_bits"].__setitem__("lm_head", 0.0), "lm_head is"),
    "larger delta": (lambda m: m.__setitem__("delta", 0.9), "token_bound is"),
    "other data": (lambda m: m.__setitem__("data_sha256", "0"), "not the data"),
    "claims left out": (lambda m: m.pop("claims"), "malformed"),
    "other format": (lambda m: m.__setitem__("format", "forerun-language-certificate"), "unknown format"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_manifest_is_rejected(made, text, tmp_path, kind):
    edit, expected = CHANGES[kind]
    assert expected in reason(rewrite(made[0], tmp_path / "x.zip", edit), text)


def test_changed_message_and_text_are_rejected(made, text, tmp_path):
    def flip(code):
        return code[:40] + bytes([code[40] ^ 8]) + code[41:]

    assert "message has been changed" in reason(rewrite(made[0], tmp_path / "x.zip", message=flip), text)
    digest = hashlib.sha256(flip(verifier.read_certificate(made[0])[1])).hexdigest()
    assert reason(rewrite(made[0], tmp_path / "x.zip", lambda m: m.__setitem__("message_sha256", digest), flip), text)
    assert "not the data" in reason(made[0], TokenText(ids=text.ids[::-1], num_bytes=text.num_bytes))
    assert "not the data" in reason(made[0], TokenText(ids=text.ids, num_bytes=text.num_bytes + 1))


def test_adapter_pays_for_its_factors_and_needs_its_base_and_a_word(text, tmp_path):
    base, path = fresh(6), tmp_path / "adapter.zip"
    candidate = DecoderCandidate(name="base", decoders=(base,), average="probability")
    with pytest.raises(ConfigError, match="--base-is-independent"):
        DecoderOptions(window=32, rank=1)
    options = DecoderOptions(window=32, rank=1, base_is_independent=True, fit=OPTIONS.fit)
    result = certify_decoders([candidate], text, path, options)
    assert result["candidates"][0]["code_length_bits"] < 2500
    tensors = dict(base_tensors(base))
    verifier.verify(path, text.ids, text.num_bytes, tensors)
    assert "needs its base" in reason(path, text)
    other = {**tensors, "norm": tensors["norm"] + 1}
    assert "not the base" in reason(path, text, other)
    silent = rewrite(path, tmp_path / "x.zip", lambda m: m.__setitem__("base_is_independent", False))
    assert "nobody says" in reason(silent, text, tensors)


def test_bad_input_is_one_clear_error(text, tmp_path):
    candidate = DecoderCandidate(name="model", decoders=(fresh(0),), average="probability")
    with pytest.raises(ConfigError, match="at least one model"):
        certify_decoders([], text, tmp_path / "x.zip", OPTIONS)
    with pytest.raises(ConfigError, match="not that of the text"):
        certify_decoders([candidate], TokenText(ids=text.ids + VOCAB_SIZE, num_bytes=5), tmp_path / "x.zip", OPTIONS)
    with pytest.raises(ConfigError, match="windows: 33"):
        DecoderOptions(window=33)
    with pytest.raises(ConfigError, match="delta=0"):
        DecoderOptions(delta=0.0)
    steps = TensorSteps(exponent=5, steps=np.zeros((2, 2), np.int64))
    strange = DecoderMember(shape=(17, 40, 2, 1), tensors={"embed_tokens": (steps,)})
    message = DecoderMessage(smoothing=2.0**-9, window=32, average="logit", rank=0, vocab_size=2, members=(strange,))
    with pytest.raises(ConfigError, match="shapes"):
        encode_decoder_message(message, DECODER_GRID)


def test_verifier_is_short_needs_only_numpy_and_knows_the_standard_grid():
    text = SOURCE.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "numpy"}
    assert {"decoder": DECODER_GRID.sha256} == verifier.STANDARD_GRID_SHA256
    assert decoder_shape(fresh(0)) == SHAPE
