"""The int8 runner on SmolLM2: near the float32 model, at its rounded weights, and bitwise the same at any width."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from forerun.core.env import cpu_info
from forerun.core.rows import Rows
from forerun.models.checkpoint import Checkpoint
from forerun.models.decoder_weights import fill_decoder
from forerun.models.int8_runner import Int8Runner
from forerun.models.load import build_decoder, load_checkpoint
from forerun.models.torch_runner import TorchRunner
from forerun.nn.int8_linear import quantize_weight

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(not cpu_info().has_int8_dot, reason="this CPU has no exact int8 products"),
]

TEXT = (
    "The river had been rising since noon. By four o'clock the lower road was under water, and the baker's sons were "
    "carrying sacks of flour up to the loft two at a time. Nobody spoke of leaving. In 1953 it had come as far as the "
    "church steps, and the old people measured every flood against that one.\n\n"
    "def moving_average(values, width):\n    total = 0.0\n    for index, value in enumerate(values):\n"
    "        total += value\n        if index >= width:\n            total -= values[index - width]\n"
    "        yield total / min(index + 1, width)\n\n"
    "Q: A train leaves at 9:40 and arrives at 12:05. How long is the journey?\n"
    "A: From 9:40 to 11:40 is two hours, and from 11:40 to 12:05 is 25 minutes, so it takes 2 hours 25 minutes.\n"
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint("default")


@pytest.fixture(scope="module")
def tokens(checkpoint) -> list[int]:
    ids = checkpoint.tokenizer.encode(TEXT)
    assert len(ids) > 200
    return ids


@pytest.fixture(scope="module")
def runner(checkpoint) -> Int8Runner:
    return Int8Runner(checkpoint.config, checkpoint.tensors.tensor, num_sequences=3, capacity=512)


@pytest.fixture(scope="module")
def logits(runner, tokens) -> np.ndarray:
    return runner.forward(Rows.chains([(0, 0, tokens)]))


def log_probs(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().log_softmax(-1).numpy()


def mean_kl(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over rows of KL(first || second), in nats."""
    p, q = log_probs(first), log_probs(second)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def rounded(tensor: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """The weights that the int8 runner's stand for."""

    def read(name: str) -> np.ndarray:
        values = tensor("embed_tokens.weight" if name == "lm_head.weight" else name)
        if values.ndim == 1:
            return values
        if name == "embed_tokens.weight":
            return values.astype(np.float16).astype(np.float32)
        levels, scale = quantize_weight(values)
        return levels * scale[:, None]

    return read


def test_the_law_is_that_of_the_rounded_weights(checkpoint, tokens, logits):
    config = replace(checkpoint.config, tie_embeddings=False)
    twin = TorchRunner(fill_decoder(config, rounded(checkpoint.tensors.tensor)), capacity=512)
    expected = twin.forward(Rows.chains([(0, 0, tokens)]))
    assert mean_kl(expected, logits) < 1e-5
    assert np.abs(logits - expected).max() < 0.05 < np.ptp(expected, axis=1).min() / 100
    assert np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)) > 0.99


def test_rounding_the_weights_costs_little(checkpoint, tokens, logits):
    decoder = build_decoder(checkpoint)
    with torch.inference_mode():
        expected = decoder(torch.tensor([tokens]))[0].numpy()
    assert mean_kl(expected, logits) < 0.02
    assert np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)) > 0.93


def test_one_level_is_coarser_but_near(checkpoint, tokens, logits):
    draft = Int8Runner(checkpoint.config, checkpoint.tensors.tensor, capacity=512, num_levels=1)
    coarse = draft.forward(Rows.chains([(0, 0, tokens)]))
    assert 1e-4 < mean_kl(logits, coarse) < 0.2


@pytest.mark.parametrize("width", range(1, 25))
def test_logits_are_bitwise_the_same_at_every_width(runner, tokens, logits, width):
    """Pieces of one width over the whole text, or its end for narrow ones, where spans are longest."""
    start = max(0, len(tokens) - 6 * width)
    runner.forward(Rows.chains([(0, 0, tokens[: max(1, start)])]))
    while start < len(tokens):
        piece = tokens[start : start + width]
        np.testing.assert_array_equal(
            runner.forward(Rows.chains([(0, start, piece)])), logits[start : start + len(piece)]
        )
        start += width


def test_logits_are_bitwise_the_same_beside_other_sequences(runner, tokens, logits):
    other = tokens[::-1]
    runner.forward(Rows.chains([(0, 0, other[:90]), (1, 0, tokens[:100]), (2, 0, other[:3])]))
    parts = [(0, 90, other[90:97]), (1, 100, tokens[100:106]), (2, 3, other[3:4])]
    together = runner.forward(Rows.chains(parts))
    np.testing.assert_array_equal(together[7:13], logits[100:106])
    np.testing.assert_array_equal(runner.forward(Rows.chains([(1, 106, tokens[106:107])])), logits[106:107])
    np.testing.assert_array_equal(runner.forward(Rows.chains(parts), logit_rows=np.array([9, 12])), logits[[102, 105]])


def test_verifying_any_draft_finds_the_greedy_text(runner, checkpoint):
    """The contract of every decoding method: one row at a time, or drafts of all widths, right and wrong."""
    prompt = checkpoint.tokenizer.encode("Here is a short story about a fox who learned to count:")

    def greedy(text: list[int], start: int) -> list[int]:
        return runner.forward(Rows.chains([(0, start, text[start:])])).argmax(axis=1).tolist()

    plain = [*prompt, greedy(prompt, 0)[-1]]
    while len(plain) < 120:
        plain.append(greedy(plain, len(plain) - 1)[-1])

    rng = np.random.default_rng(0)
    verified = [*prompt, greedy(prompt, 0)[-1]]
    while len(verified) < 120:
        size, num_right = rng.integers(1, 9), rng.integers(0, 9)
        draft = plain[len(verified) : len(verified) + size]
        draft = draft[:num_right] + [(token + 1) % 1000 for token in draft[num_right:]]
        chosen = greedy([*verified, *draft], len(verified) - 1)
        accepted = 0
        while accepted < len(draft) and draft[accepted] == chosen[accepted]:
            accepted += 1
        verified += [*draft[:accepted], chosen[accepted]]
    assert verified[:120] == plain
