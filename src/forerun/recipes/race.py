"""The race: autoregressive, speculative and speculative-speculative decoding of the same prompts, timed one by one.

The methods run one after the other, since on a machine with few cores they would take them from each other. Before its
timed runs a method decodes the first prompt once untimed; that is the time to draw. Nothing is called between the
tokens of a timed run but the clock, so a screen can't slow it: what was recorded can be replayed afterwards.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from forerun.core.errors import ConfigError
from forerun.engine.config import EngineConfig, Method
from forerun.engine.detokenizer import IncrementalDetokenizer
from forerun.engine.outputs import StreamChunk
from forerun.engine.sampling import SamplingParams
from forerun.recipes.manifest import run_manifest
from forerun.recipes.prompt_file import DEFAULT_PROMPTS, Prompt
from forerun.recipes.race_result import RACERS, Racer, RaceResult, RaceRun, RaceToken
from forerun.recipes.text_engine import OpenEngine, TextEngine, TextTokenizer, open_engine

METHOD_OF: Final[dict[Racer, Method]] = {"ar": "none", "sd": "sequential", "ssd": "ssd"}

_WARMUP_TOKENS: Final = 32


def _greedy() -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=128, seed=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RaceConfig:
    """What races, on what.

    Attributes:
        engine: Models and resources; its ``method`` is set by the race.
        sampling: Of every request. A seed is needed where it samples, so that the methods can be compared.
        prompts: What is asked, each through the model's chat template; one that has none continues them as they are.
        racers: Which methods take part.
        warmup_tokens: Most tokens of the untimed run; ``None``: as many as a timed run.

    Raises:
        ConfigError: No prompt, no method or one twice, or sampling without a seed.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingParams = field(default_factory=_greedy)
    prompts: tuple[Prompt, ...] = DEFAULT_PROMPTS
    racers: tuple[Racer, ...] = RACERS
    warmup_tokens: int | None = _WARMUP_TOKENS

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("prompts=(): a race needs at least one prompt")
        if not self.racers or len(set(self.racers)) < len(self.racers):
            raise ConfigError(f"racers={self.racers}: must be one or more of {', '.join(RACERS)}, each once")
        if self.sampling.seed is None and not self.sampling.is_greedy:
            raise ConfigError("sampling.seed=None: outputs of a race that samples are compared, so set a seed")

    @property
    def expects_identity(self) -> bool:
        """Whether every method must emit the same tokens."""
        return self.sampling.is_greedy or self.engine.speculative.verification == "coupled"


class RaceObserver:
    """Gets told how the race goes; override what you want to hear of.

    Only :meth:`token` is called while a model works, and only in the untimed run.
    """

    def loading(self, racer: Racer) -> None:
        """A method's models are about to load."""

    def warming_up(self, racer: Racer) -> None:
        """The untimed run begins."""

    def token(self, racer: Racer, token: RaceToken) -> None:
        """A token of the untimed run has come."""

    def timing(self, racer: Racer, prompt_index: int) -> None:
        """A timed run begins."""

    def timed(self, run: RaceRun) -> None:
        """A timed run has ended."""


def race(
    config: RaceConfig, *, observer: RaceObserver | None = None, open_engine: OpenEngine = open_engine
) -> RaceResult:
    """Run a race.

    Args:
        config: What races, on what.
        observer: Gets told how it goes; ``None``: nobody.
        open_engine: Loads the models of one method.

    Returns:
        Every token with its time and origin, and the totals.

    Raises:
        ForerunError: A model can't be loaded or a prompt can't be served.

    Effects:
        Opens one engine a method, and closes it before the next. The engine's warnings are kept for the result.
    """
    observer = observer or RaceObserver()
    manifest = run_manifest(engine=config.engine, sampling=config.sampling)
    runs: dict[Racer, tuple[RaceRun, ...]] = {}
    with _kept_warnings() as kept:
        for racer in config.racers:
            observer.loading(racer)
            with closing(open_engine(replace(config.engine, method=METHOD_OF[racer]))) as engine:
                runs[racer] = _run_method(engine, racer, config, observer)
    return RaceResult(
        prompts=config.prompts,
        runs=runs,
        is_greedy=config.sampling.is_greedy,
        expects_identity=config.expects_identity,
        manifest=manifest,
        warnings=tuple(dict.fromkeys(str(warning.message) for warning in kept)),
    )


@contextmanager
def _kept_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings, which would otherwise be written across a screen."""
    with warnings.catch_warnings(record=True) as kept:
        warnings.simplefilter("always")
        yield kept


def _run_method(engine: TextEngine, racer: Racer, config: RaceConfig, observer: RaceObserver) -> tuple[RaceRun, ...]:
    prompts = [_engine_prompt(engine.tokenizer, prompt) for prompt in config.prompts]
    observer.warming_up(racer)
    limits = [limit for limit in (config.warmup_tokens, config.sampling.max_tokens) if limit is not None]
    warmup = replace(config.sampling, min_tokens=0, max_tokens=min(limits, default=None))
    start_s = time.perf_counter()
    detokenizer = IncrementalDetokenizer(engine.tokenizer.token_bytes)
    for chunk in engine.stream([prompts[0]], warmup):
        arrival_s = time.perf_counter()
        time_s = arrival_s - start_s
        for token_id, origin in zip(chunk.token_ids, chunk.origins, strict=True):
            text = detokenizer.push(token_id)
            observer.token(racer, RaceToken(time_s=time_s, token_id=token_id, origin=origin, text=text))
        start_s += time.perf_counter() - arrival_s  # the observer's time is not the engine's
    runs: list[RaceRun] = []
    for index, prompt in enumerate(prompts):
        observer.timing(racer, index)
        runs.append(_timed_run(engine, racer, index, prompt, config.sampling))
        observer.timed(runs[-1])
    return tuple(runs)


def _engine_prompt(tokenizer: TextTokenizer, prompt: Prompt) -> str | Sequence[int]:
    if tokenizer.chat_template is None:
        return prompt.text
    return tokenizer.apply_chat_template([{"role": "user", "content": prompt.text}])


def _timed_run(
    engine: TextEngine, racer: Racer, prompt_index: int, prompt: str | Sequence[int], sampling: SamplingParams
) -> RaceRun:
    start_s = time.perf_counter()
    arrivals = [(time.perf_counter() - start_s, chunk) for chunk in engine.stream([prompt], sampling)]
    metrics = engine.last_metrics
    finish_reason = arrivals[-1][1].finish_reason if arrivals else None
    assert finish_reason is not None, "the last chunk says why it is the last"
    return RaceRun(
        racer=racer,
        prompt_index=prompt_index,
        tokens=tuple(_tokens(arrivals, engine.tokenizer)),
        finish_reason=finish_reason,
        metrics=metrics,
    )


def _tokens(arrivals: Sequence[tuple[float, StreamChunk]], tokenizer: TextTokenizer) -> Iterator[RaceToken]:
    detokenizer = IncrementalDetokenizer(tokenizer.token_bytes)
    for time_s, chunk in arrivals:
        for token_id, origin in zip(chunk.token_ids, chunk.origins, strict=True):
            yield RaceToken(time_s=time_s, token_id=token_id, origin=origin, text=detokenizer.push(token_id))
