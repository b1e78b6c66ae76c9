"""What happened while decoding, counted as it happens."""

from collections import Counter
from dataclasses import dataclass, field

from forerun.engine.outputs import DecodeMetrics


@dataclass(slots=True)
class DecodeCounters:
    """Counts of one call of the engine.

    Attributes:
        prefill_s: Time until each request had its first token.
        decode_s: Time of the rounds.
        forward_s: Time of the target's passes within the rounds.
        hit_s: Time of the rounds that began with a hit (every request's).
        hit_forward_s: The target's part of it.
        num_tokens: Tokens emitted.
        num_first_tokens: Those that prefill decided.
        num_prefilled: Prompt tokens that ran through the target.
        num_rounds: Target passes of the rounds.
        num_verifications: Requests verified, over the rounds.
        num_proposed: Draft tokens verified.
        num_accepted: Of them, accepted.
        num_prepared: Tokens drafted ahead, for outcomes that might come.
        num_unused: Of them, not verified: of outcomes that did not come, or deeper than was asked.
        num_hits: Rounds of requests whose outcome had been predicted.
        num_look_ups: Rounds of requests in which a prediction was looked for.
        accepted_counts: How often each number of draft tokens was accepted.
        proposed_counts: How often each number of them was proposed.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    forward_s: float = 0.0
    hit_s: float = 0.0
    hit_forward_s: float = 0.0
    num_tokens: int = 0
    num_first_tokens: int = 0
    num_prefilled: int = 0
    num_rounds: int = 0
    num_verifications: int = 0
    num_proposed: int = 0
    num_accepted: int = 0
    num_prepared: int = 0
    num_unused: int = 0
    num_hits: int = 0
    num_look_ups: int = 0
    accepted_counts: Counter[int] = field(default_factory=Counter[int])
    proposed_counts: Counter[int] = field(default_factory=Counter[int])

    def metrics(self, *, method: str, cores: int) -> DecodeMetrics:
        """Return rates and shares."""
        num_decoded = self.num_tokens - self.num_first_tokens
        return DecodeMetrics(
            method=method,
            num_tokens=self.num_tokens,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            tokens_per_s=_ratio(num_decoded, self.decode_s),
            cores=cores,
            num_engine_steps=self.num_rounds,
            acceptance_rate=_ratio(self.num_accepted, self.num_proposed),
            mean_acceptance_length=_ratio(num_decoded, self.num_verifications),
            cache_hit_rate=_ratio(self.num_hits, self.num_look_ups),
            non_verify_share=_ratio(self.decode_s - self.forward_s, self.decode_s),
            non_verify_share_hit=_ratio(self.hit_s - self.hit_forward_s, self.hit_s),
            num_verifications=self.num_verifications,
            num_proposed=self.num_proposed,
            num_look_ups=self.num_look_ups,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
