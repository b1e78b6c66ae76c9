"""The law of tokens verified where the logits are, by chi-square with a false-alarm probability of 1e-4 each."""

import numpy as np
import pytest
import torch

from forerun.core.rng import uniform
from forerun.engine.law import ProcessedLaw
from forerun.nn.token_laws import Drafted, drawn_tokens, law_weights, quantile_columns

pytestmark = pytest.mark.statistical
NUM_DRAWS, VOCAB_SIZE, SEED = 20_000, 6, 11
DRAFT_IDS = torch.tensor([0, 2, 3, 5])


def scores(seed: int, num: int) -> torch.Tensor:
    return 1.2 * torch.randn(num, generator=torch.Generator().manual_seed(seed))


def numbers(purpose) -> torch.Tensor:
    return torch.tensor([uniform(SEED, 0, draw, purpose) for draw in range(NUM_DRAWS)], dtype=torch.float64)


def emitted(p_scores, q_scores, *, reported=None, accept_purpose="accept") -> np.ndarray:
    """Count the tokens of many verifications of a draft of one token, with the streams that the engine uses."""
    of_draft = q_scores.expand(NUM_DRAWS, -1)
    tokens = DRAFT_IDS[quantile_columns(law_weights(of_draft), numbers("draft"))]
    drafted = Drafted(
        tokens,
        numbers(accept_purpose),
        has_laws=torch.ones_like(tokens),
        scores=of_draft if reported is None else reported.expand(NUM_DRAWS, -1),
        columns=DRAFT_IDS,
    )
    found = drawn_tokens(
        p_scores.expand(NUM_DRAWS, -1), torch.ones(NUM_DRAWS, dtype=torch.float64), numbers("residual"),
        torch.arange(VOCAB_SIZE), drafted=drafted,
    )  # fmt: skip
    return np.bincount(found.numpy(), minlength=VOCAB_SIZE)


def law(p_scores: torch.Tensor) -> np.ndarray:
    return ProcessedLaw(vocab_size=VOCAB_SIZE, ids=None, scores=p_scores.numpy()).dense_probs()


@pytest.mark.parametrize("seed", [1, 2])
def test_tokens_have_the_targets_law(seed, assert_law):
    p_scores = scores(seed, VOCAB_SIZE)
    p_scores[1] = -torch.inf if seed == 2 else p_scores[1]
    assert_law(emitted(p_scores, scores(seed + 10, len(DRAFT_IDS))), law(p_scores), seed=SEED)


def test_a_law_that_the_token_was_not_drawn_from_is_caught(assert_not_law):
    p_scores, q_scores = scores(1, VOCAB_SIZE), scores(11, len(DRAFT_IDS))
    assert_not_law(emitted(p_scores, q_scores, reported=torch.zeros_like(q_scores)), law(p_scores))


def test_numbers_that_decide_twice_are_caught(assert_not_law):
    p_scores = scores(1, VOCAB_SIZE)
    counts = emitted(p_scores, scores(11, len(DRAFT_IDS)), accept_purpose="draft")
    assert_not_law(counts, law(p_scores))
