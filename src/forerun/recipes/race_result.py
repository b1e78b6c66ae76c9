"""What a race measured: each run token by token, the totals of each method, and where outputs part if they do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, Final, Literal

from forerun.engine.outputs import DecodeMetrics, FinishReason, TokenOrigin
from forerun.recipes.manifest import text_digest
from forerun.recipes.prompt_file import Prompt

Racer = Literal["ar", "sd", "ssd"]
RACERS: Final[tuple[Racer, ...]] = ("ar", "sd", "ssd")
"""Autoregressive, speculative and speculative-speculative decoding: the order in which they run."""

_RATIOS: Final[tuple[tuple[str, Racer, Racer], ...]] = (
    ("sd_over_ar", "sd", "ar"),
    ("ssd_over_ar", "ssd", "ar"),
    ("ssd_over_sd", "ssd", "sd"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RaceToken:
    """One token as it arrived.

    Attributes:
        time_s: Since the request was made, prefill included. Tokens of one round share a time.
        token_id: The token.
        origin: Where it came from.
        text: The characters it completed; may be empty.
    """

    time_s: float
    token_id: int
    origin: TokenOrigin
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RaceRun:
    """One prompt decoded by one method.

    Attributes:
        racer: The method.
        prompt_index: Which prompt of the race.
        tokens: The output.
        finish_reason: Why it ended.
        metrics: What the engine measured.
    """

    racer: Racer
    prompt_index: int
    tokens: tuple[RaceToken, ...]
    finish_reason: FinishReason
    metrics: DecodeMetrics

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The output's token ids."""
        return tuple(token.token_id for token in self.tokens)

    def as_dict(self) -> dict[str, Any]:
        """Return the run as plain JSON types."""
        return {
            "token_ids": list(self.token_ids),
            "token_times_s": [token.time_s for token in self.tokens],
            "origins": [token.origin for token in self.tokens],
            "text": "".join(token.text for token in self.tokens),
            "finish_reason": self.finish_reason,
            "metrics": self.metrics.as_dict(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RacerTotals:
    """One method over all prompts.

    Attributes:
        num_tokens: Tokens emitted.
        prefill_s: Time of all prefills, with the first token of each prompt.
        decode_s: Time of all decoding after that.
        tokens_per_s: Tokens after the first of each prompt, over ``decode_s``; 0 where there are none.
        cores: CPU cores (or devices) used.
        num_engine_steps: Passes of the target.
        acceptance_rate: As in :class:`~forerun.engine.outputs.DecodeMetrics`, each rate over all prompts' counts.
        mean_acceptance_length: The same.
        cache_hit_rate: The same.
        non_verify_share: As there, weighted by decode time.
        non_verify_share_hit: The same.
    """

    num_tokens: int
    prefill_s: float
    decode_s: float
    tokens_per_s: float
    cores: int
    num_engine_steps: int
    acceptance_rate: float
    mean_acceptance_length: float
    cache_hit_rate: float
    non_verify_share: float
    non_verify_share_hit: float


def totals(runs: Sequence[RaceRun]) -> RacerTotals:
    """Add up the runs of one method.

    Args:
        runs: At least one.
    """
    measured = [run.metrics for run in runs]
    decode_s = sum(metrics.decode_s for metrics in measured)
    num_later_tokens = sum(max(len(run.tokens) - 1, 0) for run in runs)

    def by_count(value: Callable[[DecodeMetrics], float], count: Callable[[DecodeMetrics], int]) -> float:
        return _weighted_mean([(value(metrics), count(metrics)) for metrics in measured])

    def by_time(value: Callable[[DecodeMetrics], float]) -> float:
        return _weighted_mean([(value(metrics), metrics.decode_s) for metrics in measured])

    return RacerTotals(
        num_tokens=sum(len(run.tokens) for run in runs),
        prefill_s=sum(metrics.prefill_s for metrics in measured),
        decode_s=decode_s,
        tokens_per_s=num_later_tokens / decode_s if decode_s > 0 else 0.0,
        cores=max(metrics.cores for metrics in measured),
        num_engine_steps=sum(metrics.num_engine_steps for metrics in measured),
        acceptance_rate=by_count(lambda metrics: metrics.acceptance_rate, lambda metrics: metrics.num_proposed),
        mean_acceptance_length=by_count(
            lambda metrics: metrics.mean_acceptance_length, lambda metrics: metrics.num_verifications
        ),
        cache_hit_rate=by_count(lambda metrics: metrics.cache_hit_rate, lambda metrics: metrics.num_look_ups),
        non_verify_share=by_time(lambda metrics: metrics.non_verify_share),
        non_verify_share_hit=by_time(lambda metrics: metrics.non_verify_share_hit),
    )


def _weighted_mean(pairs: Sequence[tuple[float, float]]) -> float:
    weight = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / weight if weight else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """The first place where two methods' outputs differ.

    Attributes:
        prompt_index: Which prompt of the race.
        position: Index of the token in the output.
        token_ids: What each method has there; ``None`` where its output has ended.
        texts: The characters of these tokens.
    """

    prompt_index: int
    position: int
    token_ids: Mapping[Racer, int | None]
    texts: Mapping[Racer, str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RaceResult:
    """A finished race.

    Attributes:
        prompts: What was asked.
        runs: For each method, in the order they ran, one run a prompt.
        is_greedy: Whether every token was the most likely one.
        expects_identity: Whether the methods must emit the same tokens: greedy, or coupled under one seed.
        manifest: The circumstances.
        warnings: What the engine warned of, such as a drafter it gave up.
    """

    prompts: tuple[Prompt, ...]
    runs: Mapping[Racer, tuple[RaceRun, ...]]
    is_greedy: bool
    expects_identity: bool
    manifest: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def totals(self) -> dict[Racer, RacerTotals]:
        """Each method over all prompts."""
        return {racer: totals(runs) for racer, runs in self.runs.items()}

    @property
    def speedup(self) -> dict[str, float | None]:
        """Ratios of tokens/s; ``None`` where one of the two did not run or emitted a single token a prompt."""
        speeds = {racer: total.tokens_per_s for racer, total in self.totals.items()}
        return {
            name: speeds[fast] / speeds[slow] if speeds.get(fast) and speeds.get(slow) else None
            for name, fast, slow in _RATIOS
        }

    @property
    def divergence(self) -> Divergence | None:
        """Where outputs first differ; ``None`` where all are identical."""
        for prompt_index in range(len(self.prompts)):
            outputs = [runs[prompt_index].tokens for runs in self.runs.values()]
            for position, tokens in enumerate(zip_longest(*outputs)):
                if len({token and token.token_id for token in tokens}) > 1:
                    named = dict(zip(self.runs, tokens, strict=True))
                    return Divergence(
                        prompt_index=prompt_index,
                        position=position,
                        token_ids={racer: token and token.token_id for racer, token in named.items()},
                        texts={racer: token and token.text for racer, token in named.items()},
                    )
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types.

        ``identical`` says whether the outputs are token for token the same; ``identical_greedy`` the same for a greedy
        race, and ``None`` for one that sampled.
        """
        divergence = self.divergence
        identical = divergence is None
        return {
            "methods": {racer: asdict(total) for racer, total in self.totals.items()},
            "speedup": self.speedup,
            "identical_greedy": identical if self.is_greedy else None,
            "identical": identical,
            "identity_expected": self.expects_identity,
            "first_difference": None if divergence is None else asdict(divergence),
            "warnings": list(self.warnings),
            "prompts": [
                {
                    "text": prompt.text,
                    "kind": prompt.kind,
                    "outputs": {racer: runs[index].as_dict() for racer, runs in self.runs.items()},
                }
                for index, prompt in enumerate(self.prompts)
            ],
            "manifest": dict(self.manifest) | {"prompts_sha256": text_digest(prompt.text for prompt in self.prompts)},
        }
