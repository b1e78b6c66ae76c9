"""What the engine returns: chunks while a request streams, and the finished completion with its metrics."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

TokenOrigin = Literal["target", "draft", "cache_hit", "fallback"]
"""Where an emitted token came from.

``target``: the target's own (prefill, recovered and bonus tokens, every AR token); ``draft``: an accepted draft token
drafted while the target waited (SD); ``cache_hit``: an accepted draft token that was ready in the speculation cache;
``fallback``: an accepted draft token that a fallback drafter proposed after a miss.
"""

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """Log-probability of one emitted token under the processed target law.

    Attributes:
        token_id: The emitted token.
        logprob_nats: Its log-probability.
        top: The most likely alternatives, best first, as ``(token_id, logprob_nats)``.
    """

    token_id: int
    logprob_nats: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedOutcome:
    """An outcome of a verification that the drafter prepared for.

    Attributes:
        num_accepted: Draft tokens that it accepts.
        token_id: The token after them.
        continuation: What was drafted to follow it, as far as it was ready.
    """

    num_accepted: int
    token_id: int
    continuation: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutcomeLookUp:
    """What was prepared while a draft was verified, and what came true.

    Attributes:
        draft: The draft that was verified; empty for a prompt.
        num_accepted: Its tokens that were accepted.
        token_id: The token after them.
        predicted: The outcomes prepared, in the order of their branches.
        came_true: Which of them is the one that came; ``None``: it was not found among them.
    """

    draft: tuple[int, ...]
    num_accepted: int
    token_id: int
    predicted: tuple[PredictedOutcome, ...]
    came_true: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamChunk:
    """A piece of one request's output, in the order it was decided.

    Attributes:
        index: Which prompt of the call it belongs to.
        text: Text that can be shown now (complete UTF-8, no open stop-string match). May be empty.
        token_ids: Tokens decided since the last chunk.
        origins: One origin for each token of ``token_ids``.
        logprobs: One entry for each token where asked for, else empty.
        finish_reason: Set on the last chunk of the request only.
        error: Why the request could not go on, where ``finish_reason`` is ``error``.
        is_broken: Whether the reason is none of the request's: the model's numbers are no numbers.
        look_up: Of the outcome before this chunk, whose continuation is this chunk's draft; where asked for, under SSD.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    origins: tuple[TokenOrigin, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    is_broken: bool = False
    look_up: OutcomeLookUp | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeMetrics:
    """What one call of the engine measured about its decoding (prefill apart).

    Attributes:
        method: The decoding method that ran: ``none`` (AR), ``sequential`` (SD), ``ssd``, or ``auto``.
        num_tokens: Tokens emitted, over all requests of the call.
        prefill_s: Wall time of prefill, with the first token of each request.
        decode_s: Wall time from the end of prefill to the last token.
        tokens_per_s: Tokens after the first of each request, over ``decode_s``.
        cores: Number of CPU cores (or devices) the method used.
        num_engine_steps: Verification (or AR) passes of the target.
        acceptance_rate: Accepted draft tokens over proposed draft tokens; 0 where none was proposed.
        mean_acceptance_length: Tokens per target pass and request, bonus token included; 1 for AR.
        cache_hit_rate: Share of verification outcomes that the speculation cache held; 0 for AR and SD.
        non_verify_share: Share of decode wall time not spent in the target's forward pass.
        non_verify_share_hit: The same over the rounds that began with a cache hit; 0 where there was none.
        num_verifications: Requests verified, over all passes: the denominator of the mean acceptance length.
        num_proposed: Draft tokens proposed: the denominator of the acceptance rate.
        num_look_ups: Outcomes looked for in the speculation cache: the denominator of the hit rate.
    """

    method: str
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
    non_verify_share_hit: float = 0.0
    num_verifications: int = 0
    num_proposed: int = 0
    num_look_ups: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the metrics as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A finished request.

    Attributes:
        index: Which prompt of the call it belongs to.
        prompt_token_ids: The prompt as the target saw it.
        text: The decoded text, cut before a matched stop string.
        token_ids: The emitted tokens, end-of-sequence token included where it was emitted.
        origins: One origin for each token.
        logprobs: One entry for each token where asked for, else empty.
        finish_reason: ``stop`` (EOS, stop id, stop string), ``length`` (max_tokens or context), ``cancelled``, or
            ``error`` (it could not go on; the other requests did).
        metrics: Of the call this completion was part of (shared by its requests).
        error: Why it could not go on.
    """

    index: int
    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    origins: tuple[TokenOrigin, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    metrics: DecodeMetrics
    error: str | None = None
