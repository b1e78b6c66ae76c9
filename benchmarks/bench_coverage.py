"""Coverage of the bounds and round trip of the coder, measured; writes benchmarks/results/coverage.json.

    python benchmarks/bench_coverage.py [--certificates 2500] [--messages 1000000] [--out FILE]

Certificates: two Gaussian clouds in eight dimensions with a share of labels flipped; of 200 linear classifiers the one
with the least bound is coded, decoded by the verifier and bounded as `forerun certify` does. Its true error is known in
closed form. A second check lets an adversary pick, among ten classifiers of known risk, the one whose bound is furthest
below its risk, alone and as the surrogate of a model that is as bad as its agreement allows; a third does the same
with ten sequences of dependent losses and the empirical-Bernstein bound.

Each part is written as soon as it is there; a part that the file has is left out on the next call.
"""

import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
import torch

from forerun.bounds import verifier
from forerun.bounds.codebook import count_magnitudes, symbol_nats
from forerun.bounds.coding import ArithmeticDecoder, ArithmeticEncoder
from forerun.bounds.message import Message, encode_message
from forerun.bounds.pac_bayes import (
    complexity_nats,
    empirical_bernstein_bound,
    holdout_bound,
    kl_bound,
    risk_bounds,
)
from forerun.bounds.prior import PriorGrid, build_network
from forerun.nn.subspace import SubspaceNetwork

FAMILIES = ("binomial", "kl", "catoni", "mcallester")
DELTA, NUM_SAMPLES, NUM_HOLDOUT, FLIPS, DIM = 0.05, 60, 30, 0.1, 8
NUM_TRIED, OTHER_NATS = 200, 8.0
DISAGREEMENT = 0.1
GRID = PriorGrid(
    input_shape=(1, 8, 1), num_classes=2, input_scale=1.0, architectures=((),), subspace_dims=(DIM,), levels=(3,)
)
CENTRE = np.array([0.6, -0.4, 0.3, 0.0, 0.0, 0.2, -0.2, 0.1])


def draw(source: np.random.Generator, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    signs = source.integers(0, 2, num_samples)
    inputs = source.normal(size=(num_samples, 8)) + np.where(signs, 1, -1)[:, None] * CENTRE
    return inputs, np.where(source.random(num_samples) < FLIPS, 1 - signs, signs)


def true_risk(layers: list) -> float:
    """Return the error of a linear classifier: its score difference is Gaussian in each cloud."""
    weight, bias = layers[0][:2]
    direction, offset = weight[1] - weight[0], bias[1] - bias[0]
    length = float(np.linalg.norm(direction))
    wrong = [0.5 * math.erfc(side * (side * direction @ CENTRE + offset) / length / math.sqrt(2)) for side in (1, -1)]
    clean = sum(wrong) / 2
    return clean * (1 - FLIPS) + (1 - clean) * FLIPS


def certify_once(network: SubspaceNetwork, source: np.random.Generator) -> tuple[dict[str, float], float]:
    """Return every bound of one certificate, and the true error."""
    inputs, labels = draw(source, NUM_SAMPLES)
    symbols = torch.from_numpy(source.integers(-1, 2, (NUM_TRIED, DIM)))
    values = network.get_buffer("start") + symbols.float() @ network.get_buffer("projection").T
    weights, offsets = values[:, :16].view(NUM_TRIED, 2, 8), values[:, 16:]
    scores = torch.einsum("kcf,nf->knc", weights, torch.from_numpy(inputs).float()) + offsets[:, None, :]
    errors = (scores.argmax(dim=2) != torch.from_numpy(labels)).sum(dim=1).tolist()
    nats = [symbol_nats(count_magnitudes(row, 1)) + OTHER_NATS for row in symbols.tolist()]
    bounds_tried = {pair: kl_bound(pair[0], NUM_SAMPLES, pair[1]) for pair in set(zip(errors, nats, strict=True))}
    best = min(range(NUM_TRIED), key=lambda index: bounds_tried[errors[index], nats[index]])
    message = Message(architecture=(), levels=3, seed=0, magnitude_steps=(64,), symbols=tuple(symbols[best].tolist()))
    choices, coefficients, ledger = verifier.decode(encode_message(message, GRID), GRID.as_json())
    layers = verifier.build_layers(choices, coefficients, GRID.input_shape, 2)
    num_errors = int(verifier.count_errors(layers, inputs, labels, GRID.as_json()).sum())
    bounds = risk_bounds(
        num_errors=num_errors, num_samples=NUM_SAMPLES, code_length_bits=sum(ledger.values()), delta=DELTA
    )
    fresh_inputs, fresh_labels = draw(source, NUM_HOLDOUT)
    fresh = int(verifier.count_errors(layers, fresh_inputs, fresh_labels, GRID.as_json()).sum())
    values = {name: getattr(bounds, name) for name in FAMILIES}
    values["holdout"] = holdout_bound(num_errors=fresh, num_samples=NUM_HOLDOUT, delta=DELTA)
    return values, true_risk(layers)


def measure_pipeline(num_certificates: int) -> dict:
    network = build_network(GRID, architecture=(), dim=DIM, seed=0)
    violations, sums, risks = dict.fromkeys([*FAMILIES, "holdout"], 0), dict.fromkeys([*FAMILIES, "holdout"], 0.0), 0.0
    source = np.random.default_rng(2026)
    for _ in range(num_certificates):
        bounds, risk = certify_once(network, source)
        risks += risk
        for name, bound in bounds.items():
            violations[name] += bound < risk
            sums[name] += bound
    rates = {name: count / num_certificates for name, count in violations.items()}
    return {
        "messages_tried_each": NUM_TRIED, "certificates": num_certificates, "delta": DELTA, "violation_rate": rates,
        "mean_bound": {name: total / num_certificates for name, total in sums.items()},
        "mean_true_risk": risks / num_certificates, "all_within_delta": max(rates.values()) <= DELTA,
    }  # fmt: skip


def measure_adversary(num_trials: int, num_samples: int = 60, num_classifiers: int = 10) -> dict:
    source = np.random.default_rng(11)
    risks = np.linspace(0.5, 0.2, num_classifiers)
    errors = source.binomial(num_samples, risks, size=(num_trials, num_classifiers))
    rates = {}
    rows = np.arange(num_classifiers)[None, :]
    tables = [
        [risk_bounds(num_errors=k, num_samples=num_samples, code_length_bits=j + 1, delta=DELTA)
         for k in range(num_samples + 1)]
        for j in range(num_classifiers)
    ]  # fmt: skip
    for name in FAMILIES:
        table = np.array([[getattr(bounds, name) for bounds in row] for row in tables])
        rates[name] = float((table[rows, errors] < risks).any(axis=1).mean())
    unpaid = np.array(
        [holdout_bound(num_errors=k, num_samples=num_samples, delta=DELTA) for k in range(num_samples + 1)]
    )
    # A model that errs wherever it disagrees with the classifier picked, and wherever that errs: no room in the sum.
    table = np.array([[bounds.binomial for bounds in row] for row in tables])
    disagreements = source.binomial(num_samples, DISAGREEMENT, size=num_trials)
    sums = np.minimum(1, table[rows, errors] + unpaid[disagreements][:, None])
    agreement_rate = float((sums < risks + DISAGREEMENT).any(axis=1).mean())
    return {
        "trials": num_trials, "delta": DELTA, "violation_rate": rates,
        "agreement": {
            "delta": 2 * DELTA, "disagreement": DISAGREEMENT, "violation_rate": agreement_rate,
            "within_delta": agreement_rate <= 2 * DELTA,
        },
        "control_without_code_length": float((unpaid[errors] < risks).any(axis=1).mean()),
        "complexity_of_shortest_nats": complexity_nats(code_length_bits=1, delta=DELTA),
        "all_within_delta": max(rates.values()) <= DELTA,
    }  # fmt: skip


def measure_martingale(num_trials: int, num_samples: int = 300, num_sequences: int = 10) -> dict:
    """Bound the mean conditional expectation of losses that depend on the loss before; sequence j costs j + 1 bits."""
    source, shape = np.random.default_rng(12), (num_trials, num_sequences)
    losses, expectations = np.empty((num_samples, *shape)), np.empty((num_samples, *shape))
    level = np.full(shape, 0.2)
    for step in range(num_samples):
        expectations[step], losses[step] = level, source.beta(4 * level, 4 * (1 - level))
        level = 0.1 + 0.5 * losses[step]
    nats = [complexity_nats(code_length_bits=j + 1, delta=DELTA) for j in range(num_sequences)]
    bounds = np.array(
        [
            [empirical_bernstein_bound(losses[:, trial, j], nats[j]) for j in range(num_sequences)]
            for trial in range(num_trials)
        ]
    )
    rate = float((bounds < expectations.mean(axis=0)).any(axis=1).mean())
    return {
        "certificates": num_trials, "delta": DELTA, "violation_rate": {"empirical_bernstein": rate},
        "control_without_confidence": float((losses.mean(axis=0) < expectations.mean(axis=0)).any(axis=1).mean()),
        "mean_bound": float(bounds.mean()), "mean_expectation": float(expectations.mean()),
        "all_within_delta": rate <= DELTA,
    }  # fmt: skip


def measure_coder(num_messages: int) -> dict:
    source, failures, most_over, total_bits, total_ideal = random.Random(5), 0, -math.inf, 0, 0.0
    for _ in range(num_messages):
        table = [source.randrange(1, 4096) for _ in range(source.randrange(1, 5))]
        starts = [sum(table[:index]) for index in range(len(table))]
        total, message = sum(table), [source.randrange(len(table)) for _ in range(source.randrange(5))]
        encoder = ArithmeticEncoder()
        for symbol in message:
            encoder.encode(starts[symbol], table[symbol], total)
        code = encoder.finish()
        decoder, decoded = ArithmeticDecoder(code), []
        for _ in message:
            position = decoder.position(total)
            symbol = max(index for index, start in enumerate(starts) if start <= position)
            decoder.consume(starts[symbol], table[symbol], total)
            decoded.append(symbol)
        failures += decoded != message
        ideal = sum(math.log2(total / table[symbol]) for symbol in message)
        most_over = max(most_over, 8 * len(code) - 1.001 * ideal)
        total_bits, total_ideal = total_bits + 8 * len(code), total_ideal + ideal
    return {
        "messages": num_messages, "failures": failures, "most_bits_over_1.001_ideal": most_over, "allowed_over": 32,
        "mean_bits": total_bits / num_messages, "mean_ideal_bits": total_ideal / num_messages,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certificates", type=int, default=2500)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "pipeline": lambda: measure_pipeline(args.certificates),
        "adversary": lambda: measure_adversary(200_000),
        "martingale": lambda: measure_martingale(args.certificates),
        "coder": lambda: measure_coder(args.messages),
    }
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    for name, measure in parts.items():
        if name in result:
            continue
        result[name] = measure()
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
