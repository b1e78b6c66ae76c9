"""What a device does with the engine: its bandwidth and peak, then every method by batch and context, and their floor.

Ratios are of runs in one process on one device. The target may be inflated (:mod:`forerun.models.inflation`): its law,
and so the acceptance, is the small model's, its cost the large one's; the result says so first.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor

from forerun.core.dtype_choice import DtypeName
from forerun.core.errors import ConfigError, DeviceMemoryError
from forerun.engine.api import LLM
from forerun.engine.config import EngineConfig, Method
from forerun.engine.sampling import SamplingParams
from forerun.models.device import sequence_bytes
from forerun.models.inflation import inflated_name
from forerun.models.load import load_checkpoint
from forerun.models.tokenizer import Tokenizer
from forerun.models.weight_format import bytes_per_pass_in, float_type
from forerun.nn.gumbel import select_tokens
from forerun.nn.truncation import Truncation
from forerun.recipes.benchmark_turns import Turns
from forerun.recipes.decode_benchmark.machine import machine_manifest
from forerun.recipes.device_bars import reached_bars
from forerun.recipes.device_peers import TransformersPeer, peer_cases

METHODS: Final[tuple[Method, ...]] = ("none", "ssd", "sequential", "auto")
LABELS: Final = {"none": "AR", "sequential": "SD", "ssd": "SSD", "auto": "auto"}
_NUM_REPEATS: Final = 5
_LEN_MULTIPLE: Final = 64
_WARM_UP_TOKENS: Final = 24
"""Tokens decoded before a case is timed: its graphs are recorded then."""
_MOST_WARM_UPS: Final = 4
"""Drafts change their length, and each length has its graphs: a case is warm when warming up has recorded none."""


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
        time_limit_s: No case begins that would not be done by then, as far as those before it tell; what was left out
            is listed. Each method, and the peer, has an equal part of what is left when its turn comes.
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


def device_benchmark(
    config: DeviceBenchmarkConfig, *, report: Callable[[str], None] = lambda line: None
) -> Iterator[dict[str, Any]]:
    """Measure, and give what there is after each part: a run that is cut off has measured something.

    Args:
        config: What.
        report: Takes a line of news at a time.

    Yields:
        ``about`` (what the target is), ``bars`` (what is to be reached, and whether it is), ``machine``, ``device``,
        ``config``, ``micro``, ``floor``, ``select_ms`` (the choice of a token, by batch), ``cases``, ``peers``,
        ``left_out``, ``seconds`` and ``is_complete``.
    """
    started = time.perf_counter()
    turns = Turns(deadline_s=started + config.time_limit_s, num_left=len(config.methods) + config.with_peers)
    device = torch.device(config.engine.device)
    about = _about(config.engine)
    report(about)
    micro = micro_benchmark(device, num_bytes=config.micro_bytes, matmul_size=config.matmul_size)
    rates = {name: f"{micro[f'{name}_bytes_per_s'] / 1e9:.0f} GB/s" for name in ("copy", "read")}
    report(f"copies {rates['copy']}, reads {rates['read']}, multiplies {micro['matmul_flops'] / 1e12:.2f} TFLOP/s")
    facts = {
        "machine": machine_manifest(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "config": asdict(config),
        "micro": micro,
        "floor": _floor(config.engine, micro),
        "select_ms": _select_ms(config, device),
    }
    cases: list[dict[str, Any]] = []
    peers: dict[str, Any] = {}

    def found(*, is_complete: bool = False) -> dict[str, Any]:
        compared = _compared(cases, facts["floor"], max_tokens=config.max_tokens)
        return {
            "about": about,
            "bars": [asdict(bar) for bar in reached_bars(compared)],
            **facts,
            "cases": compared,
            "peers": peers,
            "left_out": list(turns.left_out),
            "seconds": time.perf_counter() - started,
            "is_complete": is_complete,
        }

    yield found()
    for method in config.methods:
        turns.begin()
        for case in _cases_of(method, config, turns, report=report):
            cases.append(case)
            yield found()
    if config.with_peers:
        turns.begin()
        for case in _peer_cases(config, turns, device, peers, report=report):
            cases.append(case)
            yield found()
    yield found(is_complete=True)


def _cases_of(
    method: Method, config: DeviceBenchmarkConfig, turns: Turns, *, report: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure a method with an engine of its own, which is gone afterwards."""
    needed = max(config.context_tokens) + config.max_tokens + 1
    most = load_checkpoint(config.engine.target).config.max_len
    engine = replace(
        config.engine,
        method=method,
        max_num_seqs=max(config.batch_sizes),
        # Products like rows that begin at multiples of 16 bytes; what is too long is the engine's to refuse.
        max_model_len=max(needed, min(most, -(-needed // _LEN_MULTIPLE) * _LEN_MULTIPLE)),
    )
    names = {size: f"{LABELS[method]}, batch {size[0]}, context {size[1]}" for size in config.sizes}
    (first, name), *_ = names.items()
    if not turns.has_time(name, num_tokens=first[0] * first[1]):
        turns.left_out += list(names.values())[1:]
        return
    with _engine(engine) as llm:
        for (batch, context), name in names.items():
            if (batch, context) != first and not turns.has_time(name, num_tokens=batch * context):
                continue
            try:
                case = _case(llm, batch=batch, context=context, max_tokens=config.max_tokens)
            except DeviceMemoryError as error:
                turns.leave_out(name, str(error))
                continue
            report(f"{name}: {case['tokens_per_s']:.1f} tokens/s, {case['step_ms']:.2f} ms a step")
            yield {"method": method, "batch": batch, "context": context} | case
    del llm  # or its cache would still be there when the next engine asks how much memory is free
    release_device_memory(engine.device)


def release_device_memory(device: str) -> None:
    """Give back what torch keeps of memory that is not used any more."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def _engine(config: EngineConfig) -> LLM:
    return LLM(**{field.name: getattr(config, field.name) for field in fields(config)})


def _peer_cases(
    config: DeviceBenchmarkConfig,
    turns: Turns,
    device: torch.device,
    about: dict[str, Any],
    *,
    report: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Measure `transformers`, and write down what it is."""
    engine = config.engine
    if find_spec("transformers") is None:
        turns.leave_out("transformers", "not installed: pip install 'forerun[bench]'")
        return
    first_batch, first_context = config.sizes[0]
    if not turns.has_time("transformers", num_tokens=first_batch * first_context):
        return
    target = load_checkpoint(engine.target)
    draft = None if engine.draft in {None, "default", "self", "ngram"} else load_checkpoint(str(engine.draft))
    dtype = float_type("bfloat16" if _dtype(engine) != "float32" else "float32", device)
    peer = TransformersPeer(target, draft, dtype=dtype, device=device)
    about |= {
        "transformers": peer.version,
        "dtype": str(dtype).removeprefix("torch."),
        "assistant": None if draft is None else draft.source,
    }
    yield from peer_cases(
        peer,
        config.sizes,
        lambda batch, context: _prompts(target.tokenizer, batch=batch, context=context),
        max_tokens=config.max_tokens,
        has_time=lambda name, num_tokens: turns.has_time(name, num_tokens=num_tokens),
        leave_out=turns.leave_out,
        report=report,
    )


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
    """Return how fast a device copies and reads memory, and multiplies matrices of bfloat16.

    Args:
        device: Which.
        num_bytes: Of the buffer, a multiple of 8; a copy reads and writes it.
        matmul_size: Rows and columns.
    """
    source = torch.ones(num_bytes // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy_s = _least_s(lambda: target.copy_(source), device)
    read_s = _least_s(lambda: source.view(torch.int64).amax(), device)
    matrix = torch.ones(matmul_size, matmul_size, dtype=torch.bfloat16, device=device)
    matmul_s = _least_s(lambda: matrix @ matrix, device)
    return {
        "copy_bytes_per_s": 2 * source.nbytes / copy_s,
        "read_bytes_per_s": source.nbytes / read_s,
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
    """Return what a pass has to read, and the least time that takes: the weights once, and each cached token.

    Memory is taken to be read as fast as it is read or copied, whichever is faster.
    """
    checkpoint = load_checkpoint(engine.target)
    dtype = _dtype(engine)
    num_bytes = bytes_per_pass_in(dtype, checkpoint.config)
    per_s = max(micro["copy_bytes_per_s"], micro["read_bytes_per_s"])
    kind = float_type(dtype, torch.device(engine.device))
    cached = sequence_bytes(checkpoint.config, num_slots=1, item_bytes=kind.itemsize)
    return {
        "dtype": dtype,
        "bytes": num_bytes,
        "pass_ms": 1e3 * num_bytes / per_s,
        "bytes_per_cached_token": cached,
        "ms_per_cached_token": 1e3 * cached / per_s,
    }


def _dtype(engine: EngineConfig) -> DtypeName:
    if engine.dtype != "auto":
        return engine.dtype
    return "float32" if engine.device == "cpu" else "bfloat16"


def _case(llm: LLM, *, batch: int, context: int, max_tokens: int) -> dict[str, Any]:
    """Decode a batch after a warm-up, and return what it took."""
    prompts = _prompts(llm.tokenizer, batch=batch, context=context)
    warm_up = SamplingParams(temperature=0, max_tokens=min(max_tokens, _WARM_UP_TOKENS), ignore_eos=True)
    for _ in range(_MOST_WARM_UPS):
        num_recorded = llm.num_recorded_graphs
        llm.generate(prompts, warm_up)
        if llm.num_recorded_graphs == num_recorded:
            break
    num_recorded = llm.num_recorded_graphs
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
        "graphs_recorded": llm.num_recorded_graphs - num_recorded,
        "token_ids": token_ids[0],
    }


def _prompts(tokenizer: Tokenizer, *, batch: int, context: int) -> list[list[int]]:
    """Return prompts of one length that differ: numbered notes, cut to size."""
    prompts: list[list[int]] = []
    for number in range(batch):
        notes = " ".join(f"Note {number + place}: the sea was calm on day {place}." for place in range(context))
        prompts.append(tokenizer.encode(notes)[:context])
    return prompts


def _compared(cases: Sequence[dict[str, Any]], floor: dict[str, Any], *, max_tokens: int) -> list[dict[str, Any]]:
    """Return the cases with their ratios over decoding without a draft, ours and the peer's, and over their floor.

    Outputs are compared over the tokens that both have, as far as they are equal from the first on.
    """
    by_method = {(case["method"], case["batch"], case["context"]): case for case in cases}
    compared: list[dict[str, Any]] = []
    for case in cases:
        size = (case["batch"], case["context"])
        more: dict[str, Any] = {}
        for name, method in (("over_ar", "none"), ("over_transformers", "transformers-plain")):
            base = by_method.get((method, *size))
            more[name] = case["tokens_per_s"] / base["tokens_per_s"] if base and base["tokens_per_s"] else None
        step_ms, busy_ms = case.get("step_ms"), case.get("target_busy_ms")
        num_cached = case["batch"] * (case["context"] + max_tokens / 2)
        floor_ms = floor["pass_ms"] + floor["ms_per_cached_token"] * num_cached
        more |= {
            "floor_ms": floor_ms,
            "floor_share": floor_ms / step_ms if step_ms else None,
            "idle_ms": step_ms - busy_ms if step_ms and busy_ms is not None else None,
        }
        plain = by_method.get(("none", *size))
        more["num_as_ar"] = _num_equal(case["token_ids"], plain["token_ids"]) if plain else None
        compared.append({name: value for name, value in case.items() if name != "token_ids"} | more)
    return compared


def _num_equal(some: Sequence[int], others: Sequence[int]) -> int:
    """Return how many tokens are equal from the first on."""
    differs = (place for place, pair in enumerate(zip(some, others, strict=False)) if pair[0] != pair[1])
    return next(differs, min(len(some), len(others)))
