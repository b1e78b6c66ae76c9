r"""What SSD should reach on GPUs that are not at hand: from bytes, bandwidths and published acceptance.

A pass that reads its weights from memory can't be faster than bytes over bandwidth, the *floor*; how near it comes is
an assumption, stated with the result. The rest is the closed forms of :mod:`forerun.engine.speculative.theory`:

.. math:: t_{verify} = \frac{W}{G \, b \, e}, \qquad
    r_{AR} = \frac{1 - o}{t_{verify}}, \qquad r = r_{AR} \cdot \mathrm{speedup}(h, E_{hit}, E_{miss}, T_p, T_b)

with W the bytes of weights and cached states, G GPUs of bandwidth b, e the share of it that is reached and o the share
of a step that is neither verification nor drafting.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from forerun.core.errors import ConfigError
from forerun.engine.speculative.theory import sequential_speedup, ssd_speedup
from forerun.models.config import DecoderConfig
from forerun.models.layout import bytes_per_pass

LLAMA_70B: Final = DecoderConfig(
    vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_layers=80, num_heads=64, num_kv_heads=8,
    head_dim=128, max_len=131072,
)  # fmt: skip
"""Shape of Llama-3.1-70B."""
LLAMA_1B: Final = DecoderConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32, num_kv_heads=8,
    head_dim=64, max_len=131072, tie_embeddings=True,
)  # fmt: skip
"""Shape of Llama-3.2-1B."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """GPUs, and how much of them is reached.

    Attributes:
        num_target_gpus: GPUs that share the target; the draft has one more.
        bandwidth_bytes_per_s: Of one GPU's memory.
        target_efficiency: Share of the bandwidth that the target's passes reach, communication included.
        draft_efficiency: The same for the draft's; small passes reach less.
        overhead_share: Share of a step that is neither verification nor a wait for the draft.
        num_drafts: Copies of the draft, each with a GPU, which prepare for as many times the outcomes.
    """

    num_target_gpus: int = 4
    bandwidth_bytes_per_s: float = 3.35e12
    target_efficiency: float = 0.85
    draft_efficiency: float = 0.5
    overhead_share: float = 0.08
    num_drafts: int = 1

    def __post_init__(self) -> None:
        if self.num_drafts < 1:
            raise ConfigError(f"num_drafts={self.num_drafts}: must be at least 1")
        if self.num_target_gpus < 1 or not self.bandwidth_bytes_per_s > 0:
            raise ConfigError(
                f"num_target_gpus={self.num_target_gpus}, bandwidth={self.bandwidth_bytes_per_s}: give at least one "
                "GPU and a bandwidth in bytes per second"
            )
        for name in ("target_efficiency", "draft_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be in (0, 1], a share of the bandwidth")
        if not 0 <= self.overhead_share < 1:
            raise ConfigError(f"overhead_share={self.overhead_share}: must be in [0, 1), a share of a step")


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """What a draft reaches with a target, as published.

    Attributes:
        num_speculative_tokens: K of SSD.
        hit_rate: Share of outcomes that were predicted.
        hit_length: Mean tokens per pass after a hit, with the bonus token.
        miss_length: The same after a miss.
        sequential_tokens: K of SD.
        sequential_length: Mean tokens per pass of SD.
        miss_exponent: r of the law of misses in the number of outcomes prepared, which fall by its r-th power.
        source: Where the numbers are from.
    """

    num_speculative_tokens: int
    hit_rate: float
    hit_length: float
    miss_length: float
    sequential_tokens: int
    sequential_length: float
    miss_exponent: float
    source: str


LLAMA_ACCEPTANCE: Final = Acceptance(
    num_speculative_tokens=7,
    hit_rate=0.88,
    hit_length=5.68,
    miss_length=4.01,
    sequential_tokens=6,
    sequential_length=5.0,
    miss_exponent=0.3,
    source="an independent reproduction of Llama-3.1-70B with 3.2-1B, greedy, K=7, F=3 (SD at K=6: from its histogram "
    "of accepted lengths, cut at 6)",
)
PUBLISHED: Final[Mapping[str, tuple[float, float]]] = {
    "ar": (54.7, 67.0),
    "sd": (161.8, 182.0),
    "ssd": (255.8, 280.0),
}
"""Tokens per second at batch 1 on 4 (AR, SD) and 4+1 (SSD) H100s: the paper's average, and the reproduction's."""
REPRODUCED_STEPS: Final[Mapping[int, tuple[float, float, float]]] = {
    1: (286.0, 19.0, 15.0),
    2: (514.0, 21.2, 15.5),
    4: (872.0, 24.9, 16.1),
    8: (1384.0, 31.3, 17.6),
    16: (1979.0, 43.3, 20.2),
}
"""The reproduction by batch size: tokens per second, milliseconds of a step, of these the verification."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """What a pair of models should reach at batch 1.

    Attributes:
        floor_ms: Least time of a target pass, at full bandwidth.
        verify_ms: Time of a target pass.
        draft_pass_ms: Time of a draft pass.
        draft_share: Time to read the speculation and prepare every outcome, in target passes; above 1 it shows.
        ar: Tokens per second without a draft.
        sd: The same with speculative decoding.
        ssd: The same with speculative speculative decoding.
    """

    floor_ms: float
    verify_ms: float
    draft_pass_ms: float
    draft_share: float
    ar: float
    sd: float
    ssd: float


def project(
    hardware: Hardware,
    acceptance: Acceptance,
    *,
    target: DecoderConfig = LLAMA_70B,
    draft: DecoderConfig = LLAMA_1B,
    context_tokens: int = 1024,
    bytes_per_weight: float = 2.0,
) -> Projection:
    """Project tokens per second.

    Args:
        hardware: The GPUs.
        acceptance: Of the pair.
        target: Shape of the target.
        draft: Shape of the draft.
        context_tokens: Cached tokens that every pass reads.
        bytes_per_weight: 2 for bfloat16.
    """
    rate = hardware.bandwidth_bytes_per_s
    target_bytes = _bytes_read(target, context_tokens=context_tokens, bytes_per_weight=bytes_per_weight)
    floor_s = target_bytes / (hardware.num_target_gpus * rate)
    verify_s = floor_s / hardware.target_efficiency
    draft_bytes = _bytes_read(draft, context_tokens=context_tokens, bytes_per_weight=bytes_per_weight)
    draft_s = draft_bytes / (rate * hardware.draft_efficiency)
    depth = acceptance.num_speculative_tokens
    ar = (1 - hardware.overhead_share) / verify_s
    sd = sequential_speedup(
        acceptance_length=acceptance.sequential_length,
        draft_time=acceptance.sequential_tokens * draft_s / verify_s,
    )
    draft_share = (1 + depth) * draft_s / verify_s
    ssd = ssd_speedup(
        hit_rate=1 - (1 - acceptance.hit_rate) * hardware.num_drafts**-acceptance.miss_exponent,
        hit_acceptance_length=acceptance.hit_length,
        miss_acceptance_length=acceptance.miss_length,
        draft_time=draft_share,
        fallback_time=depth * draft_s / verify_s,
    )
    return Projection(
        floor_ms=1e3 * floor_s,
        verify_ms=1e3 * verify_s,
        draft_pass_ms=1e3 * draft_s,
        draft_share=draft_share,
        ar=ar,
        sd=ar * sd,
        ssd=ar * ssd,
    )


def projection_report(
    hardware: Hardware, *, context_tokens: int = 1024, bytes_per_weight: float = 2.0
) -> dict[str, Any]:
    """Return projections of Llama-3.1-70B with 3.2-1B under several assumptions, and what was published.

    Args:
        hardware: As expected; the bound and the reference engine are put beside it.
        context_tokens: As for :func:`project`.
        bytes_per_weight: As for :func:`project`.

    Returns:
        ``projections``: for each case what was assumed and what follows; ``published``; ``verify_bound``: what the
        reproduction would reach if its steps were verifications only, by batch size; ``assumptions``: sentences.
    """
    cases = {
        "at the floor": replace(hardware, target_efficiency=1.0, draft_efficiency=1.0, overhead_share=0.0),
        "as expected of this engine": hardware,
        **{f"the same with {num} drafts": replace(hardware, num_drafts=num) for num in (2, 4)},
        "as the reference engine was measured": replace(
            hardware, target_efficiency=_reproduced_efficiency(), draft_efficiency=0.29, overhead_share=0.0
        ),
    }
    sizes = {"context_tokens": context_tokens, "bytes_per_weight": bytes_per_weight}
    return {
        "target": "Llama-3.1-70B",
        "draft": "Llama-3.2-1B",
        "projections": {
            name: {
                "assumed": asdict(case) | sizes,
                "result": asdict(
                    project(case, LLAMA_ACCEPTANCE, context_tokens=context_tokens, bytes_per_weight=bytes_per_weight)
                ),
            }
            for name, case in cases.items()
        },
        "published": {name: {"paper": paper, "reproduction": other} for name, (paper, other) in PUBLISHED.items()},
        "verify_bound": {
            str(batch): rate * step_ms / verify_ms for batch, (rate, step_ms, verify_ms) in REPRODUCED_STEPS.items()
        },
        "assumptions": [
            f"Acceptance and hits: {LLAMA_ACCEPTANCE.source}.",
            f"A target pass reads every weight ({bytes_per_weight:g} bytes each) and the states of {context_tokens} "
            f"tokens once, shared by {hardware.num_target_gpus} GPUs of {hardware.bandwidth_bytes_per_s / 1e12:g} "
            "TB/s; its width costs nothing.",
            f"As expected: {hardware.target_efficiency:.0%} of the bandwidth for the target, "
            f"{hardware.draft_efficiency:.0%} for the draft, {hardware.overhead_share:.0%} of a step lost. These are "
            "what this engine is to reach, not what was measured of it.",
            "As the reference engine was measured: the bandwidth share that its verification of 15.03 ms implies, and "
            "a draft pass of 2.5 ms; a draft round longer than a verification is what its steps lose, so nothing else "
            "is taken off.",
            "A draft round is one pass over the speculation and K passes over all branches, hidden up to the time of a "
            "verification; after a miss the target waits for K passes.",
            "Several drafts, each on a GPU, prepare for as many times the outcomes. Misses then fall by the power "
            f"{LLAMA_ACCEPTANCE.miss_exponent:g} of their number, as counted with SmolLM2 and its draft; the published "
            "hits at a fan-out of 3 would mean 1.9, by the paper's Definition 11.",
        ],
    }


def _bytes_read(config: DecoderConfig, *, context_tokens: int, bytes_per_weight: float) -> float:
    """Return the bytes that a pass reads: weights, and cached keys and values in 2 bytes."""
    states = 2 * config.num_layers * config.num_kv_heads * config.head_dim * context_tokens * 2
    return bytes_per_pass(config, bytes_per_weight=bytes_per_weight) + states


def _reproduced_efficiency() -> float:
    """Return the share of four H100s' bandwidth at which a pass of 70B in bfloat16 takes 15.03 ms."""
    return bytes_per_pass(LLAMA_70B, bytes_per_weight=2) / (4 * 3.35e12 * 15.03e-3)
