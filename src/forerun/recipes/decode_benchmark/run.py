"""``forerun bench decode`` as a function: prepare the workload, measure it, write the results."""

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forerun.core.dtype_choice import choose_dtype
from forerun.core.env import available_cores, cpu_info
from forerun.core.errors import ConfigError
from forerun.models.checkpoint import Checkpoint
from forerun.models.export import save_huggingface
from forerun.models.load import build_decoder, default_model_path, load_checkpoint
from forerun.models.weight_format import bytes_per_pass_in
from forerun.recipes.decode_benchmark.bars import bars
from forerun.recipes.decode_benchmark.measure import WARM_UP_MESSAGE, Encoded, RecordFile, Workload, run_workload
from forerun.recipes.decode_benchmark.plan import GREEDY, SAMPLED, Engine, load_prompts, own_engines, peer_engines
from forerun.recipes.decode_benchmark.plot import plot_results
from forerun.recipes.decode_benchmark.summary import summarise


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeBenchmarkConfig:
    """What to measure.

    Attributes:
        prompts: JSON lines with id, kind and prompt; kinds should alternate.
        target: Model to decode with, as for :class:`forerun.LLM`.
        draft: Its draft.
        max_tokens: Most tokens of an output.
        num_prompts: Only the first so many prompts; ``None``: all.
        engines: Only engines of these names; ``None``: all.
        peers: Folder of the peers' workers; ``None``: our methods only.
        llama_python: Interpreter that has llama-cpp-python; ``None``: this one.
        measurements: JSONL file that gets a line for each measurement; ``None``: none is kept.
        resume: Go on with an interrupted run of the same workload.
        plot: Image to draw; ``None``: none.
        time_limit_s: No prompt is begun after this long.
    """

    prompts: Path
    target: str = "default"
    draft: str = "default"
    max_tokens: int = 128
    num_prompts: int | None = None
    engines: tuple[str, ...] | None = None
    peers: Path | None = None
    llama_python: Path | None = None
    measurements: Path | None = None
    resume: bool = False
    plot: Path | None = None
    time_limit_s: float = 34 * 60.0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "num_prompts", "time_limit_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be >= 1")
        if self.max_tokens < 2:
            raise ConfigError(
                f"max_tokens={self.max_tokens}: must be >= 2; speed is that of the tokens after the first"
            )
        if self.resume and self.measurements is None:
            raise ConfigError("resume without measurements: name the file of the interrupted run (--measurements FILE)")
        if self.llama_python is not None and self.peers is None:
            raise ConfigError("llama_python without peers: name the folder of the peers' workers (--peers DIR)")


def run_decode_benchmark(config: DecodeBenchmarkConfig, *, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure every engine on the prompts, in turn, and return the results.

    Args:
        config: What to measure.
        report: Gets a line of progress now and then.

    Returns:
        The summary (see :func:`forerun.recipes.decode_benchmark.summary.summarise`) with ``bars``.

    Raises:
        ConfigError: An option or a file named by one is wrong.
        ModelLoadError: A model can't be loaded.
        MissingDependencyError: A plot is asked for without matplotlib.

    Effects:
        Runs for minutes, starts and ends processes, writes the files that the configuration names.
    """
    checkpoint = load_checkpoint(config.target)
    with ExitStack() as stack:
        workload = _workload(config, checkpoint, stack)
        file = RecordFile(config.measurements, fingerprint=workload.fingerprint(), resume=config.resume)
        run_workload(workload, file, report=report)
    summary = summarise(file.records)
    summary["bars"] = [bar.as_dict() for bar in bars(summary)]
    if config.plot is not None:
        plot_results(summary, config.plot)
    return summary


def _workload(config: DecodeBenchmarkConfig, checkpoint: Checkpoint, stack: ExitStack) -> Workload:
    tokenizer = checkpoint.tokenizer

    def encode(message: str) -> tuple[int, ...]:
        return tuple(tokenizer.apply_chat_template([{"role": "user", "content": message}]))

    prompts = load_prompts(config.prompts)[: config.num_prompts]
    return Workload(
        engines=_engines(config, checkpoint, stack),
        prompts=[Encoded(prompt=prompt, token_ids=encode(prompt.prompt)) for prompt in prompts],
        warm_up=encode(WARM_UP_MESSAGE),
        temperatures=(GREEDY, SAMPLED),
        max_tokens=config.max_tokens,
        eos_ids=tuple(sorted(checkpoint.eos_ids)),
        time_limit_s=config.time_limit_s,
        facts=_facts(config, checkpoint, num_prompts=len(prompts)),
    )


def _engines(config: DecodeBenchmarkConfig, checkpoint: Checkpoint, stack: ExitStack) -> list[Engine]:
    cores = available_cores()
    engines = own_engines(cores=cores, target=config.target, draft=config.draft)
    exported = Path()
    if config.peers is not None:
        gguf = default_model_path() if config.target == "default" else Path(config.target)
        if gguf.suffix != ".gguf":
            raise ConfigError(f"target={config.target}: llama.cpp reads GGUF files only; leave peers out, or name one")
        exported = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forerun-bench-")))
        engines += peer_engines(
            folder=config.peers, cores=cores, gguf=gguf, huggingface=exported, llama_python=config.llama_python
        )
    if config.engines is not None:
        names = [engine.name for engine in engines]
        if unknown := [name for name in config.engines if name not in names]:
            raise ConfigError(f"engines: there is no {unknown[0]!r}; choose from {', '.join(names)}")
        engines = [engine for engine in engines if engine.name in config.engines]
    if any(str(exported) in engine.command for engine in engines):
        save_huggingface(build_decoder(checkpoint), exported, tokenizer=checkpoint.tokenizer)
    return engines


def _facts(config: DecodeBenchmarkConfig, checkpoint: Checkpoint, *, num_prompts: int) -> dict[str, Any]:
    choice = choose_dtype("auto", cpu=cpu_info(), weights_are_quantized=checkpoint.quantised)
    return {
        "target": config.target,
        "target_bytes": checkpoint.size_bytes,
        "draft": config.draft,
        "draft_bytes": _draft_bytes(config.draft),
        "dtype": choice.dtype,
        "bytes_per_pass": bytes_per_pass_in(choice.dtype, checkpoint.config),
        "max_tokens": config.max_tokens,
        "num_prompts": num_prompts,
        "temperatures": [GREEDY, SAMPLED],
    }


def _draft_bytes(draft: str) -> int | None:
    """Return the size of the draft's files; ``None`` for a draft without files (n-gram, layer skip)."""
    path = Path(sys.modules["forerun.models"].__path__[0]) / "default_draft" if draft == "default" else Path(draft)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return sum(file.stat().st_size for file in files) or None
