"""What a device does with the engine: its bandwidth and peak, then every method by batch and context, and their floor.

Ratios are of runs in one process on one device. The target may be inflated (:mod:`forerun.models.inflation`): its law,
and so the acceptance, is the small model's, its cost the large one's; the result says so first.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

import torch

from forerun.core.errors import ConfigError
from forerun.engine.api import LLM
from forerun.engine.config import EngineConfig, Method
from forerun.engine.sampling import SamplingParams
from forerun.models.inflation import inflated_name
from forerun.models.load import load_checkpoint
from forerun.recipes.decode_benchmark.machine import bytes_per_pass, machine_manifest

METHODS: Final[tuple[Method, ...]] = ("none", "sequential", "ssd", "auto")
LABELS: Final = {"none": "AR", "sequential": "SD", "ssd": "SSD", "auto": "auto"}
_NUM_REPEATS: Final = 5
_WARM_UP_TOKENS: Final = 24
"""Tokens decoded before a case is timed: its graphs are recorded then."""
_ITEM_BYTES: Final = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBenchmarkConfig:
    """What to measure.

    Attributes:
        engine: Target, draft, device and number format of every case; the method is set by the benchmark.
        methods: Methods, ``none`` first: ratios are over it.
        batch_sizes: Requests side by side.
        context_tokens: Lengths of prompts.
        max_tokens: Tokens decoded by each request.
        micro_bytes: Bytes of the buffer that is copied.
        matmul_size: Rows and columns of the matrices that are multiplied.
        time_limit_s: No case begins later than this; what was left out is listed.
    """

    engine: EngineConfig
    methods: tuple[Method, ...] = METHODS
    batch_sizes: tuple[int, ...] = (1, 4, 16, 32)
    context_tokens: tuple[int, ...] = (512,)
    max_tokens: int = 128
    micro_bytes: int = 2**30
    matmul_size: int = 8192
    time_limit_s: float = 480.0

    def __post_init__(self) -> None:
        for name in ("methods", "batch_sizes", "context_tokens"):
            values = getattr(self, name)
            if not values:
                raise ConfigError(f"{name}: name at least one")
            if name != "methods" and min(values) < 1:
                raise ConfigError(f"{name}={values}: each must be at least 1")
        if self.max_tokens < 2:
            raise ConfigError(f"max_tokens={self.max_tokens}: must be at least 2; the first is the prompt's")


def run_device_benchmark(
    config: DeviceBenchmarkConfig, *, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure.

    Args:
        config: What.
        report: Takes a line of news at a time.

    Returns:
        ``about`` (what the target is), ``machine``, ``device``, ``config``, ``micro``, ``floor``, ``cases`` and
        ``left_out``.
    """
    started = time.perf_counter()
    device = torch.device(config.engine.device)
    about = _about(config.engine)
    report(about)
    micro = micro_benchmark(device, num_bytes=config.micro_bytes, matmul_size=config.matmul_size)
    report(f"copies {micro['copy_bytes_per_s'] / 1e9:.0f} GB/s, multiplies {micro['matmul_flops'] / 1e12:.2f} TFLOP/s")
    floor = _floor(config.engine, micro)
    cases: list[dict[str, Any]] = []
    left_out: list[str] = []
    for method in config.methods:
        cases += _cases_of(method, config, started=started, left_out=left_out, report=report)
    _compare(cases, floor)
    return {
        "about": about,
        "machine": machine_manifest(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "config": asdict(config),
        "micro": micro,
        "floor": floor,
        "cases": cases,
        "left_out": left_out,
        "seconds": time.perf_counter() - started,
    }


def _cases_of(
    method: Method,
    config: DeviceBenchmarkConfig,
    *,
    started: float,
    left_out: list[str],
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure a method with an engine of its own, which is gone afterwards; list in ``left_out`` what time forbids."""
    engine = replace(
        config.engine,
        method=method,
        max_num_seqs=max(config.batch_sizes),
        max_model_len=max(config.context_tokens) + config.max_tokens + 1,
    )
    names = {
        (batch, context): f"{LABELS[method]}, batch {batch}, context {context}"
        for batch in config.batch_sizes
        for context in config.context_tokens
    }
    if time.perf_counter() - started > config.time_limit_s:
        left_out += names.values()
        return []
    cases: list[dict[str, Any]] = []
    with LLM(**{field.name: getattr(engine, field.name) for field in fields(engine)}) as llm:
        for (batch, context), name in names.items():
            if time.perf_counter() - started > config.time_limit_s:
                left_out.append(name)
                continue
            case = _case(llm, batch=batch, context=context, max_tokens=config.max_tokens)
            cases.append({"method": method, "batch": batch, "context": context} | case)
            report(f"{name}: {case['tokens_per_s']:.1f} tokens/s, {case['step_ms']:.2f} ms a step")
    return cases


def micro_benchmark(device: torch.device, *, num_bytes: int, matmul_size: int) -> dict[str, float]:
    """Return how fast a device copies memory and multiplies matrices of bfloat16.

    Args:
        device: Which.
        num_bytes: Of the buffer; a copy reads and writes it.
        matmul_size: Rows and columns.
    """
    source = torch.ones(num_bytes // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy_s = _least_s(lambda: target.copy_(source), device)
    matrix = torch.ones(matmul_size, matmul_size, dtype=torch.bfloat16, device=device)
    matmul_s = _least_s(lambda: matrix @ matrix, device)
    return {
        "copy_bytes_per_s": 2 * source.numel() * 2 / copy_s,
        "matmul_flops": 2 * matmul_size**3 / matmul_s,
    }


def _least_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the least time of some repeats, the device's own work awaited."""
    times: list[float] = []
    for _ in range(_NUM_REPEATS + 1):
        _wait_for(device)
        started = time.perf_counter()
        work()
        _wait_for(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _about(engine: EngineConfig) -> str:
    wanted = inflated_name(engine.target)
    if wanted is None:
        return f"target {engine.target}, draft {engine.draft}"
    return (
        f"The target has the cost of a model of {wanted[0] / 1e9:g} billion weights and the law of {wanted[1]}: "
        f"acceptance is that of {wanted[1]} with the draft {engine.draft}, not of a large model."
    )


def _floor(engine: EngineConfig, micro: dict[str, float]) -> dict[str, float]:
    """Return the bytes of weights that a pass of the target reads, and the least time that takes."""
    checkpoint = load_checkpoint(engine.target)
    dtype = "bfloat16" if engine.dtype == "auto" and engine.device != "cpu" else engine.dtype
    num_bytes = bytes_per_pass(checkpoint.config, bytes_per_weight=_ITEM_BYTES.get(dtype, 4))
    return {"bytes": num_bytes, "pass_ms": 1e3 * num_bytes / micro["copy_bytes_per_s"]}


def _case(llm: LLM, *, batch: int, context: int, max_tokens: int) -> dict[str, Any]:
    """Decode a batch after a warm-up, and return what it took."""
    prompts = _prompts(llm, batch=batch, context=context)
    warm_up = SamplingParams(temperature=0, max_tokens=min(max_tokens, _WARM_UP_TOKENS), ignore_eos=True)
    llm.generate(prompts, warm_up)
    llm.generate(prompts, replace(warm_up, max_tokens=max_tokens))
    found = llm.last_metrics
    steps = max(1, found.num_engine_steps)
    verify_s = found.decode_s * (1 - found.non_verify_share)
    return {
        "ran": found.method,
        "tokens_per_s": found.tokens_per_s,
        "step_ms": 1e3 * found.decode_s / steps,
        "verify_ms": 1e3 * verify_s / steps,
        "non_verify_share": found.non_verify_share,
        "acceptance_rate": found.acceptance_rate,
        "mean_acceptance_length": found.mean_acceptance_length,
        "cache_hit_rate": found.cache_hit_rate,
        "prefill_s": found.prefill_s,
    }


def _prompts(llm: LLM, *, batch: int, context: int) -> list[list[int]]:
    """Return prompts of one length that differ: numbered notes, cut to size."""
    prompts: list[list[int]] = []
    for number in range(batch):
        notes = " ".join(f"Note {number + place}: the sea was calm on day {place}." for place in range(context))
        prompts.append(llm.tokenizer.encode(notes)[:context])
    return prompts


def _compare(cases: Sequence[dict[str, Any]], floor: dict[str, float]) -> None:
    """Add to each case its ratio over decoding without a draft, and the share of the floor that its passes reach."""
    plain = {(case["batch"], case["context"]): case for case in cases if case["method"] == "none"}
    for case in cases:
        base = plain.get((case["batch"], case["context"]))
        case["over_ar"] = case["tokens_per_s"] / base["tokens_per_s"] if base and base["tokens_per_s"] else None
        case["floor_share"] = floor["pass_ms"] / case["step_ms"] if case["step_ms"] else None
