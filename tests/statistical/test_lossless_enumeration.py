"""Rung 2 of losslessness: the exact law of the output over rounds, on models small enough to enumerate.

No chance is involved: every draft, decision and recovered token is summed over, so the output law must equal the
target's to rounding, through hits, misses and fallbacks. The negative controls run wrong rules through the same
enumeration and must fail it by far more than rounding.
"""

import itertools
from collections import defaultdict
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from simulated.enumeration import (
    cached_draft,
    dense_probs,
    enumerated_output_law,
    exact_rule,
    greedy_draft,
    largest_error,
    law_after,
    no_draft,
    sampled_draft,
    target_output_law,
)

from forerun.core.rows import Rows
from forerun.engine.law import ProcessedLaw
from forerun.engine.logits import LogitsProcessor
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.rejection import (
    saguaro_rescale,
    verify_rejection,
)
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.ensemble_runner import EnsemblePart, EnsembleRunner
from forerun.models.stacked_decoder import stack_decoders
from forerun.models.torch_runner import TorchRunner

TOLERANCE = 1e-12
VOCAB_SIZE = 4


def markov_laws(seed, vocab_size=VOCAB_SIZE):
    """One law for each previous token; index -1 follows the prompt."""
    rows = np.random.default_rng(seed).dirichlet(np.full(vocab_size, 0.7), size=vocab_size + 1)
    return [ProcessedLaw.from_probs(row, vocab_size=vocab_size) for row in rows]


TARGET, DRAFT = markov_laws(1), markov_laws(2)


def tempered(params):
    """Transform a law by sampling parameters, as the engine does a draft's logits."""
    processor = LogitsProcessor(params, [], (), VOCAB_SIZE)
    return lambda law: processor.process(law.scores, [])


def restricted(law):
    """A draft that knows only tokens 0 and 2."""
    ids = np.array([0, 2], np.int64)
    return ProcessedLaw(vocab_size=VOCAB_SIZE, ids=ids, scores=law.scores[ids])


def saguaro(c):
    return lambda law: saguaro_rescale(law, fan_out=2, c=c)


HALF_PREPARED = {(k, token) for k in range(4) for token in (0, 3)}
DRAFTERS = {
    "no draft": (no_draft, 4),
    "draft, K=1": (sampled_draft(DRAFT, 1), 4),
    "draft, K=3": (sampled_draft(DRAFT, 3), 4),
    "the target as its own draft": (sampled_draft(TARGET, 2), 4),
    "draft at its own temperature, top-k": (
        sampled_draft(DRAFT, 2, transform=tempered(SamplingParams(temperature=0.5, top_k=2))),
        4,
    ),
    "draft with a reduced vocabulary": (sampled_draft(DRAFT, 2, transform=restricted), 4),
    "greedy draft, K=3": (greedy_draft(DRAFT, 3), 5),
    # Exact given the token, so exact whatever it was drawn from; the price is acceptance.
    "sampled draft of unreported law": (sampled_draft(DRAFT, 2, report=lambda law: None), 4),
    "Saguaro, C=0.3": (sampled_draft(DRAFT, 2, transform=saguaro(0.3)), 4),
    "Saguaro, C=0": (sampled_draft(DRAFT, 2, transform=saguaro(0.0)), 4),
    "hits, and misses with a greedy fallback": (
        cached_draft(sampled_draft(DRAFT, 2), greedy_draft(DRAFT, 2), HALF_PREPARED),
        4,
    ),
    "Saguaro hits, and misses with a neural fallback": (
        cached_draft(sampled_draft(DRAFT, 2, transform=saguaro(0.2)), sampled_draft(DRAFT, 1), HALF_PREPARED),
        4,
    ),
    "hits, and misses without a draft": (cached_draft(sampled_draft(DRAFT, 2), no_draft, HALF_PREPARED), 4),
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_output_law_is_the_targets(name):
    drafter, length = DRAFTERS[name]
    law = enumerated_output_law(drafter, length, target=TARGET)
    assert sum(law.values()) == pytest.approx(1, abs=TOLERANCE)
    assert largest_error(law, target_output_law(TARGET, length)) < TOLERANCE


def test_output_law_is_the_processed_targets():
    process = tempered(SamplingParams(temperature=0.6, top_p=0.85))
    processed = [process(ProcessedLaw(vocab_size=4, ids=None, scores=law.scores.astype(np.float32))) for law in TARGET]
    law = enumerated_output_law(sampled_draft(DRAFT, 2), 3, target=processed)
    # Processed laws are float32 weights: exact with respect to themselves.
    assert largest_error(law, target_output_law(processed, 3)) < TOLERANCE


# An ensemble of real decoders as the target, one of them as the draft.

MEMBERS = DecoderConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=8,
    intermediate_size=12,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    max_len=16,
)
NUM_MEMBERS = 3


def member_decoders():
    decoders = []
    for seed in range(NUM_MEMBERS):
        generator = torch.Generator().manual_seed(seed)
        decoder = Decoder(MEMBERS)
        for parameter in decoder.parameters():
            parameter.data.normal_(generator=generator)
        decoders.append(decoder.eval())
    return decoders


def law_of_rows(runner):
    """The law after a prompt of one token, each prefix read afresh; the same object for the same prefix."""
    processor = LogitsProcessor(SamplingParams(temperature=1.0), [], (), VOCAB_SIZE)

    @cache
    def law(prefix):
        return processor.process(runner.forward(Rows.chains([(0, 0, [1, *prefix])]))[-1], [])

    return law


def ensemble_law(average):
    stacked = TorchRunner(stack_decoders(member_decoders()), num_sequences=NUM_MEMBERS, capacity=16)
    part = EnsemblePart(runner=stacked, num_members=NUM_MEMBERS, num_layers=MEMBERS.num_layers)
    return law_of_rows(EnsembleRunner([part], average=average, num_sequences=1))


def member_law():
    return law_of_rows(TorchRunner(member_decoders()[0], capacity=16))


def output_law_by_hand(average, length):
    """Average what the members say, in float64, one sequence at a time."""
    decoders, expected = [decoder.double() for decoder in member_decoders()], {}
    for sequence in itertools.product(range(VOCAB_SIZE), repeat=length):
        with torch.inference_mode():
            logits = torch.stack([decoder(torch.tensor([[1, *sequence]]))[0] for decoder in decoders])
        mean = logits.softmax(-1).mean(0) if average == "probability" else logits.mean(0).softmax(-1)
        expected[sequence] = np.prod([float(mean[i, token]) for i, token in enumerate(sequence)])
    return expected


ENSEMBLE_DRAFTERS = {
    "a member, K=2": lambda draft: sampled_draft(draft, 2),
    "a member, greedy": lambda draft: greedy_draft(draft, 2),
    "a member's hits, and misses without a draft": lambda draft: cached_draft(
        sampled_draft(draft, 2, transform=saguaro(0.3)), no_draft, HALF_PREPARED
    ),
}


AVERAGES_OF_DRAFTERS = ("probability", "logit", "logit")


@pytest.mark.parametrize(("name", "average"), list(zip(ENSEMBLE_DRAFTERS, AVERAGES_OF_DRAFTERS, strict=True)))
def test_output_law_is_the_ensembles(name, average):
    target = ensemble_law(average)
    law = enumerated_output_law(ENSEMBLE_DRAFTERS[name](member_law()), 3, target=target)
    assert largest_error(law, target_output_law(target, 3)) < TOLERANCE
    assert largest_error(law, output_law_by_hand(average, 3)) < 1e-6  # the members compute in float32


def test_the_law_of_a_member_or_of_the_other_average_is_not_the_ensembles():
    """The control: what the test above tells apart."""
    expected = output_law_by_hand("probability", 3)
    for wrong in (member_law(), ensemble_law("logit")):
        assert largest_error(enumerated_output_law(no_draft, 3, target=wrong), expected) > 1e-3


# Negative controls.


def no_residual_rule(target, draft, token_id):
    accepted, _ = exact_rule(target, draft, token_id)
    return accepted, dense_probs(target)


def always_accept_rule(target, draft, token_id):
    return 1.0, dense_probs(target)


def argmax_rule(target, draft, token_id):
    """Accept what a greedy target would have said, whatever the draft's law."""
    return float(token_id == int(np.argmax(dense_probs(target)))), dense_probs(target)


WRONG = {
    "replacement drawn from p, not the residual": (sampled_draft(DRAFT, 2), no_residual_rule),
    "draft never rejected": (sampled_draft(DRAFT, 2), always_accept_rule),
    "accepted if it is the target's mode": (sampled_draft(DRAFT, 2), argmax_rule),
    "raw q reported for a tempered draft": (
        lambda prefix, outcome: (
            (w, ids, [law_after(DRAFT, prefix + ids[:i]) for i in range(2)])
            for w, ids, _ in sampled_draft(DRAFT, 2, transform=tempered(SamplingParams(temperature=0.5)))(
                prefix, outcome
            )
        ),
        exact_rule,
    ),
    "raw q reported for a Saguaro draft": (
        lambda prefix, outcome: (
            (w, ids, [law_after(DRAFT, prefix + ids[:i]) for i in range(2)])
            for w, ids, _ in sampled_draft(DRAFT, 2, transform=saguaro(0.2))(prefix, outcome)
        ),
        exact_rule,
    ),
    "q reported for a greedy draft": (
        lambda prefix, outcome: (
            (w, ids, [law_after(DRAFT, prefix + ids[:i]) for i in range(2)])
            for w, ids, _ in greedy_draft(DRAFT, 2)(prefix, outcome)
        ),
        exact_rule,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules_are_caught(name):
    drafter, rule = WRONG[name]
    law = enumerated_output_law(drafter, 3, target=TARGET, rule=rule)
    assert largest_error(law, target_output_law(TARGET, 3)) > 1e-3


# The verifier itself, with its noise on a grid that no decision threshold can tell from real numbers.


def rational_laws(rows):
    return [ProcessedLaw.from_probs(np.array([float(p) for p in row]), vocab_size=len(row)) for row in rows]


def all_runs(run, grid_size):
    """Yield (probability, result) of ``run(noise)`` over every midpoint of the grid for each number it asks for."""
    pending = [()]
    while pending:
        script = pending.pop()
        remaining = list(script)
        asked_for_more = False

        def noise(index, purpose, remaining=remaining):
            nonlocal asked_for_more
            if remaining:
                return remaining.pop(0)
            asked_for_more = True
            return 0.5

        result = run(noise)
        if asked_for_more:
            pending += [(*script, (j + 0.5) / grid_size) for j in range(grid_size)]
        else:
            yield Fraction(1, grid_size ** len(script)), result


@pytest.mark.parametrize(
    ("denominator", "grid_size", "num_draft", "p_rows", "q_rows"),
    [
        # Thirds: p / q and every residual mass are multiples of 1/6 or above 1.
        (3, 6, 3, [(1, 1, 1), (2, 1, 0), (0, 1, 2), (1, 2, 0)], [(2, 1, 0), (1, 1, 1), (0, 3, 0), (1, 0, 2)]),
        # Quarters: the same with twelfths.
        (4, 12, 1, [(1, 1, 2), (3, 1, 0), (0, 2, 2), (4, 0, 0)], [(2, 1, 1), (1, 2, 1), (0, 3, 1), (1, 0, 3)]),
    ],
)
def test_verifier_enumerated_over_its_noise(denominator, grid_size, num_draft, p_rows, q_rows):
    target = rational_laws([[Fraction(p, denominator) for p in row] for row in p_rows])
    draft = rational_laws([[Fraction(q, denominator) for q in row] for row in q_rows])
    length = num_draft + 1
    law = defaultdict(float)
    for ids in itertools.product(range(3), repeat=num_draft):
        weight = np.prod([Fraction(q_rows[ids[i - 1] if i else -1][ids[i]], denominator) for i in range(num_draft)])
        if weight == 0:
            continue
        target_laws = [law_after(target, ids[:i]) for i in range(num_draft + 1)]
        draft_laws = [law_after(draft, ids[:i]) for i in range(num_draft)]
        runs = all_runs(lambda noise, t=target_laws, d=draft_laws, x=ids: verify_rejection(t, x, d, noise), grid_size)
        for probability, (k, token) in runs:
            prefix = (*ids[:k], token)
            # What a round leaves open, the target decides.
            for rest in itertools.product(range(3), repeat=length - len(prefix)):
                sequence = prefix + rest
                tail = [dense_probs(law_after(target, sequence[:i]))[sequence[i]] for i in range(len(prefix), length)]
                law[sequence] += float(weight * probability) * float(np.prod(tail))
    assert largest_error(law, target_output_law(target, length)) < TOLERANCE
