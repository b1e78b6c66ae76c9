"""From records to results: speeds and ratios with their uncertainty, speculation, memory, start, floor.

Every ratio is of total tokens over total time on the prompts that both engines were measured on, within one run. Its
interval comes from resampling prompts (percentile bootstrap), so it speaks of other prompts of these kinds on this
machine, not of other machines.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from forerun.recipes.decode_benchmark.measure import Record
from forerun.recipes.decode_benchmark.plan import GREEDY, SAMPLED

_NUM_RESAMPLES: Final = 4000
_INTERVAL: Final = (2.5, 97.5)
_RATIO_PAIRS: Final = (
    ("sd", "ar"), ("ssd", "ar"), ("ssd", "sd"), ("ssd", "sd-2"), ("ssd", "ar-2"), ("ar-2", "ar"), ("sd-2", "ar"),
    ("sd-2", "ar-2"), ("auto", "ar"), ("auto", "sd"), ("auto", "ssd"), ("auto", "ar-2"), ("auto", "sd-2"),
)  # fmt: skip
_TWO_CORE_METHODS: Final = ("ssd", "auto", "ar-2", "sd-2")
_DRAFTS_IN_TARGET_PROCESS: Final = frozenset({"sd", "sd-2", "auto"})
"""Methods whose target process loads the draft's files too."""


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Return the results of a run.

    Args:
        records: As :func:`forerun.recipes.decode_benchmark.measure.read_records` gives them.

    Returns:
        ``machine`` and ``settings`` of the last session; ``num_sessions``; ``engines`` (label, cores, facts);
        ``greedy`` and ``sampled`` (each with ``engines`` and ``speedups``); ``identical_outputs``; ``memory``;
        ``start_s``; ``floor``; ``quietness``; ``failures``. JSON types.
    """
    of_kind: dict[str, list[Record]] = {}
    for record in records:
        of_kind.setdefault(record["record"], []).append(record)
    measurements, sessions = of_kind.get("measurement", []), of_kind["session"]
    engines = {record["engine"]: record for record in of_kind.get("engine", [])}
    greedy = [record for record in measurements if record["temperature"] == GREEDY]
    sampled = [record for record in measurements if record["temperature"] == SAMPLED]
    facts = sessions[-1]["facts"]
    return {
        "machine": sessions[-1]["manifest"],
        "settings": facts,
        "num_sessions": len(sessions),
        "num_prompts_measured": len({record["prompt_id"] for record in measurements}),
        "engines": {
            name: {"label": record["label"], "cores": record["cores"], "is_own": record["is_own"], **record["facts"]}
            for name, record in engines.items()
        },
        "greedy": _at_temperature(greedy, engines),
        "sampled": _at_temperature(sampled, engines),
        "identical_outputs": {
            "greedy": identical_outputs(greedy, engines),
            "sampled": identical_outputs(sampled, engines),
        },
        "memory": _memory(of_kind.get("memory", []), facts),
        "start_s": _starts(of_kind.get("start", [])),
        "floor": _floor(greedy, of_kind.get("bandwidth", []), facts),
        "quietness": _quietness(measurements),
        "failures": [
            {key: value for key, value in item.items() if key != "record"} for item in of_kind.get("failure", [])
        ],
    }


def speedup(measurements: Iterable[Record], engine: str, base: str) -> dict[str, Any] | None:
    """Return how much faster one engine decodes than another.

    Args:
        measurements: At one temperature.
        engine: The one above the line.
        base: The one below it.

    Returns:
        ``value`` (ratio of totals), ``low`` and ``high`` (95% interval over prompts), ``median`` (of the ratios of
        single prompts), ``num_prompts``; ``None`` where no prompt has both.
    """
    by_engine: dict[str, dict[str, tuple[int, float]]] = {engine: {}, base: {}}
    for record in measurements:
        if record["engine"] in by_engine and record["num_tokens"] > 1 and record["decode_s"] > 0:
            by_engine[record["engine"]][record["prompt_id"]] = (record["num_tokens"] - 1, record["decode_s"])
    shared = sorted(by_engine[engine].keys() & by_engine[base].keys())
    if not shared:
        return None
    # Columns: tokens and seconds above the line, tokens and seconds below it.
    table = np.array([by_engine[engine][name] + by_engine[base][name] for name in shared])
    resampled = np.random.default_rng(0).integers(len(shared), size=(_NUM_RESAMPLES, len(shared)))
    low, high = np.percentile(_ratio(table[resampled].sum(axis=1)), _INTERVAL)
    return {
        "value": float(_ratio(table.sum(axis=0))),
        "low": float(low),
        "high": float(high),
        "median": float(np.median(_ratio(table))),
        "num_prompts": len(shared),
    }


def _ratio(totals: np.ndarray) -> np.ndarray:
    return (totals[..., 0] / totals[..., 1]) / (totals[..., 2] / totals[..., 3])


def identical_outputs(measurements: Iterable[Record], engines: Mapping[str, Record]) -> dict[str, int]:
    """Count the prompts on which every one of our methods emitted the same tokens.

    Returns:
        ``num_compared`` (prompts with two methods or more) and ``num_identical``.
    """
    digests: dict[str, list[str]] = {}
    for record in measurements:
        if engines[record["engine"]]["is_own"]:
            digests.setdefault(record["prompt_id"], []).append(record["output_digest"])
    compared = [found for found in digests.values() if len(found) > 1]
    return {"num_compared": len(compared), "num_identical": sum(len(set(found)) == 1 for found in compared)}


def _at_temperature(measurements: Sequence[Record], engines: Mapping[str, Record]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in engines:
        own = [record for record in measurements if record["engine"] == name]
        if own:
            kinds = dict.fromkeys(record["kind"] for record in own)
            by_kind = {kind: decode_statistics([item for item in own if item["kind"] == kind]) for kind in kinds}
            results[name] = decode_statistics(own) | {"by_kind": by_kind}
    peers = [name for name in results if not engines[name]["is_own"]]
    best = max(
        (name for name in _TWO_CORE_METHODS if name in results), key=lambda n: results[n]["tokens_per_s"], default=None
    )
    pairs = [*_RATIO_PAIRS, *((name, peer) for peer in peers for name in dict.fromkeys(("ar", "ssd", best)) if name)]
    ratios = {f"{engine} / {base}": speedup(measurements, engine, base) for engine, base in pairs}
    return {
        "engines": results,
        "best_on_two_cores": best,
        "speedups": {name: ratio for name, ratio in ratios.items() if ratio is not None},
    }


def decode_statistics(measurements: Sequence[Record]) -> dict[str, Any]:
    """Return the totals of one engine's measurements.

    Rates that our engine reports per prompt are weighted: acceptance and cache hits by target passes, shares of time by
    decode time (the share within hit rounds by decode time times hit rate).

    Args:
        measurements: Of one engine at one temperature, at least one.
    """
    tokens = sum(max(0, record["num_tokens"] - 1) for record in measurements)
    seconds = sum(record["decode_s"] for record in measurements)
    wall = sum(record["wall_s"] for record in measurements)
    timed = [record for record in measurements if record["num_tokens"] > 1 and record["decode_s"] > 0]
    result: dict[str, Any] = {
        "num_prompts": len(measurements),
        "num_tokens": sum(record["num_tokens"] for record in measurements),
        "tokens_per_s": tokens / seconds if seconds else None,
        "median_tokens_per_s": _median((record["num_tokens"] - 1) / record["decode_s"] for record in timed),
        "median_ms_per_token": _median(1e3 * record["decode_s"] / (record["num_tokens"] - 1) for record in timed),
        "tokens_per_s_with_prefill": sum(record["num_tokens"] for record in measurements) / wall,
        "median_first_token_s": _median(record["first_token_s"] for record in measurements),
        "unaccounted_share": 1 - sum(record["first_token_s"] + record["decode_s"] for record in measurements) / wall,
        "busy_cores": sum(record["cpu_s"] for record in measurements) / wall,
    }
    metrics = [(record["metrics"], record["decode_s"]) for record in measurements if record["metrics"]]
    if metrics:
        times = [decode_s for _, decode_s in metrics]
        hit_times = [item["cache_hit_rate"] * decode_s for item, decode_s in metrics]
        result |= {
            name: _mean((item[name] for item, _ in metrics), weights)
            for name, weights in (
                ("acceptance_rate", [item["num_proposed"] for item, _ in metrics]),
                ("mean_acceptance_length", [item["num_verifications"] for item, _ in metrics]),
                ("cache_hit_rate", [item["num_look_ups"] for item, _ in metrics]),
                ("non_verify_share", times),
                ("non_verify_share_hit", hit_times),
            )
        }
    return result


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _mean(values: Iterable[float], weights: Sequence[float]) -> float | None:
    total = sum(weights)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / total if total else None


def _memory(records: Sequence[Record], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the peak of each process beside 1.5 times the files it loads + 600 MB; the latest session counts."""
    memory: dict[str, Any] = {}
    for record in records:
        for process in record["processes"]:
            role, draft_bytes = process["role"], facts["draft_bytes"] or 0
            target_bytes = facts["target_bytes"] + (draft_bytes if record["engine"] in _DRAFTS_IN_TARGET_PROCESS else 0)
            file_bytes = target_bytes if role == "target" else draft_bytes
            limit = 1.5 * file_bytes + 600e6 if file_bytes else None
            memory.setdefault(record["engine"], {})[role] = {
                "rss_bytes": process["rss_bytes"],
                "peak_bytes": process["peak_bytes"],
                "file_bytes": file_bytes,
                "limit_bytes": limit,
            }
    return memory


def _starts(records: Sequence[Record]) -> dict[str, Any]:
    starts: dict[str, list[float]] = {}
    for record in records:
        starts.setdefault(record["engine"], []).append(record["seconds"])
    return {name: {"median": statistics.median(found), "all": found} for name, found in starts.items()}


def _floor(greedy: Sequence[Record], bandwidths: Sequence[Record], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the time that reading the weights alone takes, and how far plain decoding on one core is from it."""
    bytes_per_s = _median(record["bytes_per_s"] for record in bandwidths)
    plain = [record for record in greedy if record["engine"] == "ar"]
    ar_ms = decode_statistics(plain)["median_ms_per_token"] if plain else None
    floor_ms = 1e3 * facts["bytes_per_pass"] / bytes_per_s if bytes_per_s else None
    return {
        "read_bytes_per_s": bytes_per_s,
        "bytes_per_pass": facts["bytes_per_pass"],
        "floor_ms_per_token": floor_ms,
        "ar_ms_per_token": ar_ms,
        "ar_over_floor": ar_ms / floor_ms if ar_ms and floor_ms else None,
    }


def _quietness(measurements: Sequence[Record]) -> dict[str, Any]:
    """Return how many cores' worth of other work ran beside the measurements: a run on a busy machine says so."""
    shares = sorted(record["foreign_cpu_s"] / record["wall_s"] for record in measurements)
    return {
        "median_foreign_cores": _median(shares),
        "p90_foreign_cores": shares[int(0.9 * (len(shares) - 1))] if shares else None,
    }
