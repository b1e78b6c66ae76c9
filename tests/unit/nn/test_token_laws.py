"""Laws by tensor operations against those of the host: weights, draws and the rule of rejection, bit for bit."""

import math

import numpy as np
import pytest
import torch

from forerun.core.numerics import PART_UNITS
from forerun.core.numerics import running_sums as host_sums
from forerun.engine.law import ProcessedLaw, quantile_index
from forerun.engine.logits import LogitsProcessor
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.rejection import verify_rejection
from forerun.nn.token_laws import (
    Drafted,
    drawn_tokens,
    law_weights,
    normalized,
    processed_scores,
    quantile_columns,
    running_sums,
)
from forerun.nn.truncation import Truncation

VOCAB_SIZE = 300
FEW = np.sort(np.random.default_rng(0).choice(VOCAB_SIZE, 40, replace=False))
PARAMS = [
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.4, top_k=12),
    SamplingParams(temperature=1.0, top_p=0.8),
    SamplingParams(temperature=2.0, min_p=0.05, top_p=0.95),
    SamplingParams(temperature=1.0, top_k=1),
]


def of_rows(params: list[SamplingParams]) -> tuple[torch.Tensor, Truncation]:
    log_min_ps = [np.log(some.min_p) if some.min_p else -np.inf for some in params]
    truncation = Truncation(
        torch.tensor([some.top_k for some in params]),
        torch.tensor([some.top_p for some in params], dtype=torch.float64),
        torch.tensor(log_min_ps, dtype=torch.float64),
    )
    return torch.tensor([some.temperature for some in params], dtype=torch.float64), truncation


def scores_of(logits: np.ndarray, params: list[SamplingParams]) -> torch.Tensor:
    temperatures, truncation = of_rows(params)
    return processed_scores(torch.from_numpy(logits), temperatures, truncation)


def host_law(logits: np.ndarray, params: SamplingParams, ids: np.ndarray | None = None) -> ProcessedLaw:
    return LogitsProcessor(params, [], (), VOCAB_SIZE, candidate_ids=ids).process(logits, [])


def normal(*shape: int, seed: int) -> np.ndarray:
    return 2.5 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_probabilities_have_the_bits_of_the_hosts():
    params = PARAMS * 20
    logits = normal(len(params), VOCAB_SIZE, seed=1)
    found = normalized(law_weights(scores_of(logits, params))).numpy()
    for row, own, some in zip(found, logits, params, strict=True):
        law = host_law(own, some)
        np.testing.assert_array_equal(row, law.dense_probs())
        exact = np.exp(law.scores - law.scores.max(), dtype=np.float64)
        np.testing.assert_allclose(law.probs(), exact / exact.sum(), rtol=1e-6)


def test_draws_are_those_of_the_host_at_the_very_ends_too():
    params = PARAMS * 40
    logits = normal(len(params), VOCAB_SIZE, seed=2)
    uniforms = np.random.default_rng(3).random(len(params))
    uniforms[:2], uniforms[2:4] = 2.0**-53, 1 - 2.0**-53
    drawn = quantile_columns(law_weights(scores_of(logits, params)), torch.from_numpy(uniforms))
    assert drawn.tolist() == [
        host_law(own, some).draw(u) for own, some, u in zip(logits, params, uniforms.tolist(), strict=True)
    ]
    weights = np.array([[3e-14, 0, 1, 0], [0, 0.5, 0.25, 0]])  # the product with the first total rounds up to it
    nearly_all = torch.full((2,), 1 - 2.0**-53, dtype=torch.float64)
    columns = quantile_columns(torch.from_numpy(weights), nearly_all).tolist()
    assert columns == [quantile_index(row, 1 - 2.0**-53) for row in weights] == [2, 2]


@pytest.mark.parametrize("ids", [None, FEW], ids=["all", "few"])
@pytest.mark.parametrize("is_drawn", [True, False], ids=["drawn", "without chance"])
def test_rejection_decides_as_the_host_does(ids, is_drawn):
    """Rows with a draft and rows without, greedy ones and truncated ones, in one call."""
    params = [*PARAMS, SamplingParams(temperature=0)] * 80
    rng, drafted_ids = np.random.default_rng(5), np.arange(VOCAB_SIZE) if ids is None else ids
    logits = normal(len(params), VOCAB_SIZE, seed=6)
    draft_logits = logits[:, drafted_ids] + 0.7 * normal(len(params), len(drafted_ids), seed=7)
    draft_logits[3::7] = logits[3::7][:, drafted_ids]  # p is q, but for tokens that the draft does not know
    accepts, draws = rng.random(len(params)), rng.random(len(params))
    tokens, expected = np.full(len(params), -1), []
    for row, some in enumerate(params):
        target = host_law(logits[row], some)
        if row % 4 == 0:  # the row after a draft
            expected.append(target.draw(draws[row]) if some.temperature else int(logits[row].argmax()))
            continue
        draft = host_law(draft_logits[row], some, ids)
        tokens[row] = draft.draw(rng.random())
        if not some.temperature:
            expected.append(int(logits[row].argmax()))
            continue
        noise = {"accept": accepts[row], "residual": draws[row], "sample": 0.5}
        num_accepted, token = verify_rejection(
            [target, target], [tokens[row]], [draft if is_drawn else None], lambda _, purpose, n=noise: n[purpose]
        )
        expected.append(int(tokens[row]) if num_accepted else token)
    drafted = Drafted(
        torch.from_numpy(tokens),
        torch.from_numpy(accepts),
        has_laws=torch.ones(len(params), dtype=torch.int64) if is_drawn else None,
        scores=scores_of(draft_logits, params) if is_drawn else None,
        columns=torch.from_numpy(drafted_ids) if is_drawn else None,
    )
    temperatures, _ = of_rows(params)
    found = drawn_tokens(
        scores_of(logits, params),
        temperatures,
        torch.from_numpy(draws),
        torch.arange(VOCAB_SIZE),
        drafted=drafted,
    ).numpy()
    assert found.tolist() == expected
    has_draft = (tokens >= 0) & (temperatures.numpy() > 0)
    assert 0 < (found == tokens)[has_draft].sum() < has_draft.sum()


def test_sums_are_the_same_in_any_order():
    weights = np.random.default_rng(4).random(5000) * 10.0 ** -np.random.default_rng(5).integers(0, 20, 5000)
    shuffled = np.random.default_rng(6).permutation(weights)
    sums = running_sums(torch.from_numpy(weights))
    np.testing.assert_array_equal(sums.numpy(), host_sums(weights))
    assert sums[-1] == host_sums(shuffled)[-1]
    assert host_sums(weights)[-1] == pytest.approx(PART_UNITS * math.fsum(weights), rel=1e-15)


def test_a_broken_row_says_so_and_leaves_the_others_alone():
    logits = torch.tensor([[0.0, float("nan")], [0.0, float("inf")], [-torch.inf, 0.5]])
    ones = torch.ones(3, dtype=torch.float64)
    drafted = Drafted(torch.tensor([4, 4, 6]), ones / 2)
    for some in (None, drafted):
        for truncation in (None, of_rows([SamplingParams(temperature=1, top_p=0.5)] * 3)[1]):
            scores = processed_scores(logits, ones, truncation)
            assert drawn_tokens(scores, ones, ones / 2, torch.tensor([4, 6]), drafted=some).tolist() == [
                -1,
                -1,
                6,
            ]


def test_a_law_without_a_finite_score_is_refused_on_the_host():
    for broken in (np.nan, np.inf, -np.inf):
        law = ProcessedLaw(vocab_size=2, ids=None, scores=np.array([-np.inf, broken], np.float32))
        with pytest.raises(FloatingPointError, match="largest score"):
            law.draw(0.5)
