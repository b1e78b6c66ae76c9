"""How a draft chooses: the token it proposes, and the outcomes it thinks likely."""

from collections.abc import Callable, Sequence

import numpy as np

from forerun.core.errors import DeadEndError
from forerun.core.rng import gumbel_row, uniform
from forerun.engine.config import SpeculativeConfig
from forerun.engine.constraint_state import TokenConstraint
from forerun.engine.law import ProcessedLaw
from forerun.engine.logits import LogitsProcessor
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.context_copy import ContextCopy, mixed_law
from forerun.engine.speculative.coupling import coupled_token
from forerun.engine.speculative.fan_out import REACH_NATS
from forerun.engine.speculative.rejection import saguaro_rescale

NUM_CANDIDATES = 64
"""Likeliest tokens among which outcomes are ranked."""
_SHARPNESS = 1.0
_RECENT = 6
_TRUSTED = 0.5
"""A guess that is right more often than this is preferred to the draft model's likeliest token."""


class DraftChoice:
    """Draws draft tokens for one request, and ranks the tokens that may come instead.

    Its law is the draft model's, mixed with a guess copied from the context where there is one, both within what the
    constraint allows. Greedy, it takes the likeliest token. With temperature and ``coupled`` verification it adds the
    noise that the target will add; with ``rejection`` it draws from its law, which is then the q that the target
    verifies with.

    Args:
        params: Of the request; seed set.
        config: How drafts are verified.
        prompt_ids: The prompt.
        eos_ids: End-of-sequence ids.
        vocab_size: Of the target.
        vocab_ids: Target ids of the draft's columns; ``None``: all.
        request_number: Keys the noise, with the seed.
        constraint: What the output must be, at its start. ``None``: any text, or it is left to the target to refuse.
    """

    def __init__(
        self,
        params: SamplingParams,
        config: SpeculativeConfig,
        prompt_ids: Sequence[int],
        eos_ids: frozenset[int],
        *,
        vocab_size: int,
        vocab_ids: np.ndarray | None,
        request_number: int,
        constraint: TokenConstraint | None = None,
    ) -> None:
        self._params, self._config = params, config
        self._vocab_ids, self._vocab_size = vocab_ids, vocab_size
        self._num_prompt = len(prompt_ids)
        self._prompt_end = list(prompt_ids[-_RECENT:])
        self._copy = ContextCopy(prompt_ids) if config.copy_from_context else None
        self._request_number = request_number
        self._is_plain = not (
            params.needs_history or params.logit_bias or params.min_tokens > 0 or constraint is not None
        )
        self._processor = LogitsProcessor(
            params, prompt_ids, eos_ids, vocab_size, candidate_ids=vocab_ids, constraint=constraint
        )

    @property
    def needs_laws(self) -> bool:
        """Whether the target needs the laws that tokens were drawn from (they are not one-hot)."""
        return self._config.verification == "rejection" and not self._params.is_greedy

    def commit(self, token_ids: Sequence[int]) -> None:
        """Learn decided tokens of the output."""
        if self._copy is not None:
            self._copy.commit(token_ids)

    def draw(
        self, logits_row: np.ndarray, output_ids: Sequence[int], *, num_prepared: int = 0
    ) -> tuple[int, ProcessedLaw | None]:
        """Choose the token that follows ``output_ids``.

        Args:
            logits_row: The draft's logits there.
            output_ids: Output so far, accepted or hypothetical.
            num_prepared: Outcomes prepared at this place, for Saguaro sampling.

        Returns:
            The token, and the law it was drawn from where the target needs it. Where the parameters allow no token of
            the draft's vocabulary, one that the target will reject.
        """
        position = self._num_prompt + len(output_ids)
        guess = self._guess(output_ids)
        if self._params.is_greedy and self._is_plain:
            if guess is not None and guess[1] >= _TRUSTED:
                return guess[0], None
            return self._token_at(int(logits_row.argmax())), None
        law = _law_or_none(self._processor.process, logits_row, output_ids)
        if law is None:
            law = ProcessedLaw.one_hot(self._token_at(int(logits_row.argmax())), vocab_size=self._vocab_size)
        if self._params.is_greedy:
            return (law.token_at(0) if guess is None or guess[1] < _TRUSTED else guess[0]), None
        if guess is not None:
            law = mixed_law(law, guess[0], weight=guess[1])
        seed = self._params.seed or 0
        if not self.needs_laws:
            return coupled_token(law, seed=seed, request=self._request_number, position=position), None
        law = saguaro_rescale(law, fan_out=num_prepared, c=self._config.saguaro_c)
        return law.draw(uniform(seed, self._request_number, position, "draft")), law

    def ranked(self, logits_row: np.ndarray, output_ids: Sequence[int], *, count: int) -> list[tuple[int, float]]:
        """Rank the tokens that the target may emit after ``output_ids``.

        With shared noise the chances are those after the noise: a gap of g between two tokens' noisy scores makes one
        ``exp(g * sharpness)`` times as likely as the other, for the target's scores are the draft's and an error.

        Args:
            logits_row: The draft's logits there.
            output_ids: Output so far, accepted or hypothetical.
            count: How many to return at most.

        Returns:
            Distinct target ids, likeliest first, each with its chance among the ranked.
        """
        if self._is_plain and self._params.is_greedy:
            ids, scores = self._vocab_ids, logits_row
        else:
            law = _law_or_none(self._processor.reported_law, logits_row, output_ids)
            if law is None:
                return []
            ids, scores = law.ids, law.scores
        head = np.flatnonzero(scores >= scores.max() - REACH_NATS)
        if len(head) > NUM_CANDIDATES > count:
            head = head[np.argpartition(scores[head], -NUM_CANDIDATES)[-NUM_CANDIDATES:]]
        head_ids = head.astype(np.int64) if ids is None else ids[head]
        values = scores[head]
        if not self._params.is_greedy and not self.needs_laws:
            position = self._num_prompt + len(output_ids)
            values = values + gumbel_row(self._params.seed or 0, self._request_number, position, head_ids)
        order = np.argsort(-values, kind="stable")
        weights = np.exp(_SHARPNESS * (values[order] - values[order[0]]).astype(np.float64))
        chances = dict(zip(head_ids[order].tolist(), (weights / weights.sum()).tolist(), strict=True))
        guess = self._guess(output_ids)
        if guess is not None:
            token, weight = guess
            first = weight + (1 - weight) * chances.pop(token, 0.0)
            chances = {token: first} | {other: (1 - weight) * chance for other, chance in chances.items()}
        return list(chances.items())[:count]

    def _guess(self, output_ids: Sequence[int]) -> tuple[int, float] | None:
        if self._copy is None:
            return None
        recent = output_ids[-_RECENT:]
        if len(recent) < _RECENT:
            recent = [*self._prompt_end, *recent]
        guess = self._copy.guess(recent)
        return guess if guess is not None and self._processor.allows(guess[0], output_ids) else None

    def _token_at(self, column: int) -> int:
        return column if self._vocab_ids is None else int(self._vocab_ids[column])


def _law_or_none(
    process: Callable[[np.ndarray, Sequence[int]], ProcessedLaw], logits_row: np.ndarray, output_ids: Sequence[int]
) -> ProcessedLaw | None:
    """Return a draft's law; ``None`` where its vocabulary holds nothing that the parameters allow."""
    try:
        law = process(logits_row, output_ids)
    except (FloatingPointError, DeadEndError):
        return None
    return law if np.isfinite(law.scores.max()) else None
