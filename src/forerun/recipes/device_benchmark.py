"""What a device does with the engine: its bandwidth and peak, then every method by batch and context, and their floor.

Ratios are of runs in one process on one device. The target may be inflated (:mod:`forerun.models.inflation`): its law,
and so the acceptance, is the small model's, its cost the large one's; the result says so first.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor

from forerun.core.dtype_choice import DtypeName
from forerun.core.errors import ConfigError
from forerun.engine.api import LLM
from forerun.engine.config import EngineConfig, Method
from forerun.engine.sampling import SamplingParams
from forerun.models.inflation import inflated_name
from forerun.models.load import load_checkpoint
from forerun.models.tokenizer import Tokenizer
from forerun.models.weight_format import bytes_per_pass_in, float_type
from forerun.nn.gumbel import select_tokens
from forerun.nn.truncation import Truncation
from forerun.recipes.decode_benchmark.machine import machine_manifest
from forerun.recipes.device_peers import TransformersPeer, peer_cases

METHODS: Final[tuple[Method, ...]] = ("none", "sequential", "ssd", "auto")
LABELS: Final = {"none": "AR", "sequential": "SD", "ssd": "SSD", "auto": "auto"}
_NUM_REPEATS: Final = 5
_WARM_UP_TOKENS: Final = 24
"""Tokens decoded before a case is timed: its graphs are recorded then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBenchmarkConfig:
    """What to measure.

    Attributes:
        engine: Target, draft, device and number format of every case; the method is set by the benchmark.
        methods: Methods, ``none`` first: ratios are over it.
        batch_sizes: Requests side by side.
        context_tokens: Lengths of prompts; every batch size is measured at the first, the others at the first and the
            last batch size.
        max_tokens: Tokens decoded by each request.
        with_peers: Whether `transformers` is measured too, where it is installed.
        micro_bytes: Bytes of the buffer that is copied.
        matmul_size: Rows and columns of the matrices that are multiplied.
        time_limit_s: No case begins later than this; what was left out is listed. Each method, and the peer, has an
            equal part of what is left when its turn comes.
    """

    engine: EngineConfig
    methods: tuple[Method, ...] = METHODS
    batch_sizes: tuple[int, ...] = (1, 4, 16, 32)
    context_tokens: tuple[int, ...] = (512,)
    max_tokens: int = 128
    with_peers: bool = False
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

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Batches and contexts to measure, the ones that matter most first."""
        first, *further = self.context_tokens
        ends = dict.fromkeys((self.batch_sizes[0], self.batch_sizes[-1]))
        return [(batch, first) for batch in self.batch_sizes] + [(batch, more) for batch in ends for more in further]


@dataclass(slots=True)
class _Turns:
    """Shares a time limit among those whose turn comes one after the other, and lists what had none.

    Attributes:
        deadline_s: When the last one has to begin its last case, by ``time.perf_counter``.
        num_left: Turns that have not begun.
        left_out: Cases that were not begun.
    """

    deadline_s: float
    num_left: int
    left_out: list[str] = field(default_factory=list[str])
    _own_deadline_s: float = 0.0

    def begin(self) -> None:
        """Begin a turn."""
        now = time.perf_counter()
        self._own_deadline_s = now + (self.deadline_s - now) / self.num_left
        self.num_left -= 1

    def has_time(self, name: str) -> bool:
        """Return whether a case may begin; its name is listed if not."""
        if time.perf_counter() < self._own_deadline_s:
            return True
        self.left_out.append(name)
        return False


def run_device_benchmark(
    config: DeviceBenchmarkConfig, *, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure.

    Args:
        config: What.
        report: Takes a line of news at a time.

    Returns:
        ``about`` (what the target is), ``machine``, ``device``, ``config``, ``micro``, ``floor``, ``select_ms`` (the
        choice of a token, by batch), ``cases``, ``peers`` and ``left_out``.
    """
    started = time.perf_counter()
    turns = _Turns(deadline_s=started + config.time_limit_s, num_left=len(config.methods) + config.with_peers)
    device = torch.device(config.engine.device)
    about = _about(config.engine)
    report(about)
    micro = micro_benchmark(device, num_bytes=config.micro_bytes, matmul_size=config.matmul_size)
    report(f"copies {micro['copy_bytes_per_s'] / 1e9:.0f} GB/s, multiplies {micro['matmul_flops'] / 1e12:.2f} TFLOP/s")
    floor = _floor(config.engine, micro)
    cases: list[dict[str, Any]] = []
    for method in config.methods:
        turns.begin()
        cases += _cases_of(method, config, turns, report=report)
    peers: dict[str, Any] = {}
    if config.with_peers:
        turns.begin()
        peers, found = _peer(config, turns, device, report=report)
        cases += found
    _compare(cases, floor)
    return {
        "about": about,
        "machine": machine_manifest(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "config": asdict(config),
        "micro": micro,
        "floor": floor,
        "select_ms": _select_ms(config, device),
        "cases": cases,
        "peers": peers,
        "left_out": turns.left_out,
        "seconds": time.perf_counter() - started,
    }


def _cases_of(
    method: Method, config: DeviceBenchmarkConfig, turns: _Turns, *, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure a method with an engine of its own, which is gone afterwards."""
    engine = replace(
        config.engine,
        method=method,
        max_num_seqs=max(config.batch_sizes),
        max_model_len=max(config.context_tokens) + config.max_tokens + 1,
    )
    names = {size: f"{LABELS[method]}, batch {size[0]}, context {size[1]}" for size in config.sizes}
    sizes = [size for size, name in names.items() if turns.has_time(name)]
    if not sizes:
        return []
    cases: list[dict[str, Any]] = []
    with _engine(engine) as llm:
        for batch, context in sizes:
            name = names[batch, context]
            if not turns.has_time(name):
                continue
            case = _case(llm, batch=batch, context=context, max_tokens=config.max_tokens)
            cases.append({"method": method, "batch": batch, "context": context} | case)
            report(f"{name}: {case['tokens_per_s']:.1f} tokens/s, {case['step_ms']:.2f} ms a step")
    del llm  # or its cache would still be there when the next engine asks how much memory is free
    _release(engine.device)
    return cases


def _release(device: str) -> None:
    """Give back what torch keeps of memory that is not used any more."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def _engine(config: EngineConfig) -> LLM:
    return LLM(**{field.name: getattr(config, field.name) for field in fields(config)})


def _peer(
    config: DeviceBenchmarkConfig, turns: _Turns, device: torch.device, *, report: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure `transformers`; return what it is, and its cases."""
    engine = config.engine
    if find_spec("transformers") is None:
        turns.left_out.append("transformers, which is not installed: pip install 'forerun[bench]'")
        return {}, []
    if not turns.has_time("transformers"):
        return {}, []
    target = load_checkpoint(engine.target)
    draft = None if engine.draft in {None, "default", "self", "ngram"} else load_checkpoint(str(engine.draft))
    dtype = float_type("bfloat16" if _dtype(engine) != "float32" else "float32", device)
    peer = TransformersPeer(target, draft, dtype=dtype, device=device)
    cases = peer_cases(
        peer,
        config.sizes,
        lambda batch, context: _prompts(target.tokenizer, batch=batch, context=context),
        max_tokens=config.max_tokens,
        has_time=turns.has_time,
        report=report,
    )
    return {"transformers": peer.version, "dtype": str(dtype).removeprefix("torch.")}, cases


def _select_ms(config: DeviceBenchmarkConfig, device: torch.device) -> dict[str, dict[str, float]]:
    """Return the time to choose a token for each request of a batch: greedy, with noise, and with top-p too."""
    num_columns = load_checkpoint(config.engine.target).config.vocab_size
    ids = torch.arange(num_columns, device=device)
    found: dict[str, dict[str, float]] = {}
    for batch in config.batch_sizes:
        logits = torch.randn(batch, num_columns, generator=torch.Generator(device).manual_seed(0), device=device)
        keys = torch.arange(batch, device=device)
        ones = torch.ones(batch, dtype=torch.float64, device=device)
        top_p = Truncation(top_ks=torch.zeros_like(keys), top_ps=0.95 * ones, log_min_ps=-torch.inf * ones)
        ways: dict[str, Callable[[], Tensor]] = {
            "greedy": partial(select_tokens, logits, 0 * ones, keys, ids, has_noise=False),
            "noise": partial(select_tokens, logits, ones, keys, ids, has_noise=True),
            "top-p": partial(select_tokens, logits, ones, keys, ids, has_noise=True, truncation=top_p),
        }
        found[str(batch)] = {name: 1e3 * _least_s(way, device) for name, way in ways.items()}
    return found


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


def _floor(engine: EngineConfig, micro: dict[str, float]) -> dict[str, Any]:
    """Return the format of the target's weights, the bytes that a pass reads of them, and the least time that takes."""
    checkpoint = load_checkpoint(engine.target)
    dtype = _dtype(engine)
    num_bytes = bytes_per_pass_in(dtype, checkpoint.config)
    return {"dtype": dtype, "bytes": num_bytes, "pass_ms": 1e3 * num_bytes / micro["copy_bytes_per_s"]}


def _dtype(engine: EngineConfig) -> DtypeName:
    if engine.dtype != "auto":
        return engine.dtype
    return "float32" if engine.device == "cpu" else "bfloat16"


def _case(llm: LLM, *, batch: int, context: int, max_tokens: int) -> dict[str, Any]:
    """Decode a batch after a warm-up, and return what it took."""
    prompts = _prompts(llm.tokenizer, batch=batch, context=context)
    warm_up = SamplingParams(temperature=0, max_tokens=min(max_tokens, _WARM_UP_TOKENS), ignore_eos=True)
    llm.generate(prompts, warm_up)
    token_ids: list[list[int]] = [[] for _ in prompts]
    for chunk in llm.stream(prompts, replace(warm_up, max_tokens=max_tokens)):
        is_first = not token_ids[chunk.index]
        token_ids[chunk.index] += chunk.token_ids
        if is_first:
            llm.take_device_times()  # what the prompts took; rounds begin when all of them are read
    found = llm.last_metrics
    steps = max(1, found.num_engine_steps)
    busy = {name: 1e3 * seconds / steps for name, seconds in llm.take_device_times().items()}
    verify_s = found.decode_s * (1 - found.non_verify_share)
    return {
        "ran": found.method,
        "tokens_per_s": found.tokens_per_s,
        "step_ms": 1e3 * found.decode_s / steps,
        "verify_ms": 1e3 * verify_s / steps,
        "target_busy_ms": busy.get("target"),
        "draft_busy_ms": busy.get("draft"),
        "non_verify_share": found.non_verify_share,
        "acceptance_rate": found.acceptance_rate,
        "mean_acceptance_length": found.mean_acceptance_length,
        "cache_hit_rate": found.cache_hit_rate,
        "prefill_s": found.prefill_s,
        "token_ids": token_ids[0],
    }


def _prompts(tokenizer: Tokenizer, *, batch: int, context: int) -> list[list[int]]:
    """Return prompts of one length that differ: numbered notes, cut to size."""
    prompts: list[list[int]] = []
    for number in range(batch):
        notes = " ".join(f"Note {number + place}: the sea was calm on day {place}." for place in range(context))
        prompts.append(tokenizer.encode(notes)[:context])
    return prompts


def _compare(cases: Sequence[dict[str, Any]], floor: dict[str, Any]) -> None:
    """Add to each case its ratio over decoding without a draft, ours and the peer's, and what is left of the floor.

    Outputs are compared over the tokens that both have, as far as they are equal from the first on.
    """
    by_method = {(case["method"], case["batch"], case["context"]): case for case in cases}
    for case in cases:
        size = (case["batch"], case["context"])
        for name, method in (("over_ar", "none"), ("over_transformers", "transformers-plain")):
            base = by_method.get((method, *size))
            case[name] = case["tokens_per_s"] / base["tokens_per_s"] if base and base["tokens_per_s"] else None
        step_ms, busy_ms = case.get("step_ms"), case.get("target_busy_ms")
        case["floor_share"] = floor["pass_ms"] / step_ms if step_ms else None
        case["idle_ms"] = step_ms - busy_ms if step_ms and busy_ms is not None else None
        plain = by_method.get(("none", *size))
        case["num_as_ar"] = _num_equal(case["token_ids"], plain["token_ids"]) if plain else None
    for case in cases:
        del case["token_ids"]


def _num_equal(some: Sequence[int], others: Sequence[int]) -> int:
    """Return how many tokens are equal from the first on."""
    differs = (place for place, pair in enumerate(zip(some, others, strict=False)) if pair[0] != pair[1])
    return next(differs, min(len(some), len(others)))
