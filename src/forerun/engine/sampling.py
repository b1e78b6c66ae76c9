"""What a user asks of one request: the sampling parameters, checked on construction."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from forerun.core.errors import RequestError
from forerun.engine.constraint import Constraint


def _no_bias() -> dict[int, float]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends.

    The order in which these shape the law is given in :mod:`forerun.engine.logits`.

    Attributes:
        temperature: Divides the logits; 0 is greedy decoding (the most likely token, lowest id on a tie).
        top_k: Keep the k most likely tokens (and those tied with the last of them); 0 keeps all.
        top_p: Keep the most likely tokens until their probability reaches this fraction, in (0, 1]; 1 keeps all.
        min_p: Keep tokens at least this fraction as likely as the most likely one, in [0, 1]; 0 keeps all.
        repetition_penalty: Of tokens in the prompt or the output, positive logits are divided by it and negative ones
            multiplied (Keskar et al. 2019); 1 is off.
        presence_penalty: Subtracted once, in nats, from the logit of each token that is in the output.
        frequency_penalty: Subtracted, in nats, for each occurrence of a token in the output.
        logit_bias: Nats added to the logits of some token ids; minus infinity bans a token.
        seed: Root of this request's random streams, in [0, 2**64); ``None``: drawn by the engine.
        stop: Strings that end the output; a matched string is not part of the text.
        stop_token_ids: Token ids that end the output as an end-of-sequence token does.
        min_tokens: No stop condition applies before this many output tokens.
        max_tokens: Most output tokens; ``None``: until the context is full.
        logprobs: Report each token's log-probability with this many top alternatives; ``None``: don't report.
        ignore_eos: Treat end-of-sequence tokens as any others.
        constraint: What the output must be, such as JSON of a schema; ``None``: any text.

    Raises:
        RequestError: A field is out of range, or two fields contradict each other.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=_no_bias)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    max_tokens: int | None = 256
    logprobs: int | None = None
    ignore_eos: bool = False
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_law()
        self._check_limits()

    @property
    def is_greedy(self) -> bool:
        """Whether each token is the most likely one."""
        return self.temperature == 0

    @property
    def has_plain_law(self) -> bool:
        """Whether only temperature, top-k, top-p and min-p shape the law, and nothing but tokens is asked for."""
        # What ends a request does not touch its law; any other parameter that is not at its default may.
        law = replace(self, stop=(), stop_token_ids=(), max_tokens=None, ignore_eos=False)
        return replace(law, temperature=0, seed=None, top_k=0, top_p=1, min_p=0) == _PLAIN

    @property
    def needs_history(self) -> bool:
        """Whether the law at a position depends on which tokens came before it (beyond the model itself)."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def ending_ids(self, eos_ids: Collection[int]) -> frozenset[int]:
        """Return the tokens that end the request, given every end-of-sequence id of the model."""
        return frozenset(self.stop_token_ids) | (frozenset[int]() if self.ignore_eos else frozenset(eos_ids))

    def _check_numbers(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise RequestError(f"{name}={value!r}: must be a finite number")
        for name in ("top_k", "min_tokens", "max_tokens", "logprobs", "seed"):
            value = getattr(self, name)
            if value is None and name in {"max_tokens", "logprobs", "seed"}:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise RequestError(f"{name}={value!r}: must be a whole number")

    def _check_law(self) -> None:
        if self.temperature < 0:
            raise RequestError(f"temperature={self.temperature}: must be >= 0; for greedy decoding set temperature=0")
        if 0 < self.temperature < 1e-3:
            raise RequestError(
                f"temperature={self.temperature}: must be 0 or >= 0.001, below which float32 logits overflow; "
                "for greedy decoding set temperature=0"
            )
        if self.top_k < 0:
            raise RequestError(f"top_k={self.top_k}: must be >= 0; to keep every token set top_k=0")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p={self.top_p}: must be in (0, 1]; to keep every token set top_p=1")
        if not 0 <= self.min_p <= 1:
            raise RequestError(f"min_p={self.min_p}: must be in [0, 1]; to keep every token set min_p=0")
        if self.repetition_penalty <= 0:
            raise RequestError(
                f"repetition_penalty={self.repetition_penalty}: must be > 0; for no penalty set repetition_penalty=1"
            )
        for token_id, bias in self.logit_bias.items():
            if not isinstance(token_id, int) or token_id < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise RequestError(f"logit_bias has the key {token_id!r}: keys must be token ids, whole numbers >= 0")
            if math.isnan(bias) or bias == math.inf:
                raise RequestError(
                    f"logit_bias[{token_id}]={bias}: must be finite, or -inf to ban the token; "
                    "to force a token use a large bias such as 100"
                )

    def _check_limits(self) -> None:
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise RequestError(f"seed={self.seed}: must be in [0, 2**64), or None for a new seed on each call")
        if self.min_tokens < 0:
            raise RequestError(f"min_tokens={self.min_tokens}: must be >= 0")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(
                f"max_tokens={self.max_tokens}: must be >= 1, or None to go on until the context is full"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens={self.min_tokens} with max_tokens={self.max_tokens}: min_tokens must not be larger; "
                "raise max_tokens or lower min_tokens"
            )
        if self.logprobs is not None and self.logprobs < 0:
            raise RequestError(f"logprobs={self.logprobs}: must be >= 0, or None for no log-probabilities")
        for name in ("stop", "stop_token_ids"):
            if isinstance(getattr(self, name), str | bytes | int):
                raise RequestError(f"{name}={getattr(self, name)!r}: must be a list; write [{getattr(self, name)!r}]")
        if any(not isinstance(text, str) or not text for text in self.stop):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestError(f"stop={list(self.stop)!r}: must hold non-empty strings; leave an empty one out")
        if any(not isinstance(i, int) or i < 0 for i in self.stop_token_ids):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestError(f"stop_token_ids={list(self.stop_token_ids)!r}: must hold token ids, whole numbers >= 0")
        # Lists are what users write; tuples are what a frozen value needs.
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check the token ids that only a model can judge.

        Args:
            vocab_size: Size of the target's vocabulary.

        Raises:
            RequestError: ``logit_bias`` or ``stop_token_ids`` names an id that the vocabulary lacks, or every token
                is banned.
        """
        for name, ids in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            for token_id in ids:
                if token_id >= vocab_size:
                    raise RequestError(
                        f"{name} names token {token_id}: this model's token ids are 0 to {vocab_size - 1}"
                    )
        if sum(bias == -math.inf for bias in self.logit_bias.values()) >= vocab_size:
            raise RequestError("logit_bias bans every token of the vocabulary: leave at least one")


_PLAIN = SamplingParams(temperature=0, max_tokens=None)
