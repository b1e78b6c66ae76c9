"""From a logits row to the law of the token: every sampling parameter, in one stated order.

1. ``logit_bias`` is added.
2. ``repetition_penalty``, then ``frequency_penalty`` and ``presence_penalty``. Repetition looks at prompt and output;
   the other two at the output only.
3. While fewer than ``min_tokens`` tokens are out, the tokens that would end the request get probability 0.
4. What the ``constraint`` does not allow gets probability 0, an end of the text among it where the text is not whole.
5. Greedy stops here and takes the largest logit. Else divide by ``temperature``.
6. ``top_k``, then ``top_p`` over what ``top_k`` left (renormalised), then ``min_p``: all among the allowed tokens.

Steps 1 to 5 are vLLM's order (its masks come before the penalties, which leave minus infinity alone, so the law is the
same) and step 6 is that of Hugging Face transformers; ``min_p`` compares with the most likely token, so
its place changes nothing unless ``top_p`` comes after it, as in vLLM. Each truncation is a threshold on the logit:
tokens tied with the last one kept are kept too, so the law does not depend on the order of the vocabulary.

Steps 2 to 4 depend on the output so far. Inside a draft that is the *hypothetical* output up to the position.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from forerun.core.errors import DeadEndError, RequestError
from forerun.core.numerics import UNITS, exp_units, sum_exp_units
from forerun.engine.constraint_state import TokenConstraint
from forerun.engine.law import ProcessedLaw
from forerun.engine.penalties import TokenPenalties
from forerun.engine.sampling import SamplingParams

_MIN_GROUPS: Final = 512
"""Groups of a row whose maxima bound the k-th largest score: many enough for a tight bound, few enough to partition."""
_SLACK_NATS: Final = 1e-3
"""Far more than the rounding of a score or a weight, so that no token that is needed is left out for it."""


class LogitsProcessor:
    """The sampling parameters of one request, applied to its logits rows.

    Args:
        params: Sampling parameters.
        prompt_ids: The prompt as the model saw it.
        eos_ids: Every end-of-sequence id of the model.
        vocab_size: Size of the target's vocabulary.
        candidate_ids: For a draft with a reduced vocabulary, the target id of each column of its rows, ascending;
            ``None``: column i is id i.
        constraint: What the output must be, at its start; it is followed from now on. ``None``: any text.

    Raises:
        RequestError: A parameter names a token that the vocabulary lacks, or no token would be allowed.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        eos_ids: Collection[int],
        vocab_size: int,
        *,
        candidate_ids: Int64[np.ndarray, " candidates"] | None = None,
        constraint: TokenConstraint | None = None,
    ) -> None:
        params.check_vocabulary(vocab_size)
        self._params = params
        self._vocab_size = vocab_size
        self._candidate_ids = candidate_ids
        self._num_candidates = vocab_size if candidate_ids is None else candidate_ids.shape[0]
        self._penalties = TokenPenalties(params, prompt_ids, candidate_ids) if params.needs_history else None
        self._constraint = constraint
        ending = params.ending_ids(eos_ids)
        banned = {token_id for token_id, bias in params.logit_bias.items() if bias == -math.inf}
        if params.min_tokens > 0 and len(ending | banned) >= vocab_size:
            raise RequestError(
                f"min_tokens={params.min_tokens}: stop tokens and banned tokens are the whole vocabulary, "
                "so no token could be produced; set min_tokens=0 or allow more tokens"
            )
        self._ending_columns = self._columns(sorted(ending))
        biases = {i: b for i, b in sorted(params.logit_bias.items()) if self._columns([i]).size}
        self._bias_columns = self._columns(list(biases))
        self._biases = np.array(list(biases.values()), np.float32)

    def fork_constraint(self) -> TokenConstraint | None:
        """Return what the output must be, at its start, for one who drafts it; ``None``: any text."""
        return None if self._constraint is None else self._constraint.fork()

    def allows(self, token_id: int, output_ids: Sequence[int]) -> bool:
        """Return whether the constraint, if there is one, lets a token follow ``output_ids``."""
        if self._constraint is None:
            return True
        self._constraint.follow(output_ids)
        return bool(self._constraint.allowed()[token_id])

    def allowed_part(self, draft_ids: Sequence[int], output_ids: Sequence[int]) -> list[int]:
        """Return a draft up to the first token that the constraint, if there is one, would refuse."""
        for place, token_id in enumerate(draft_ids):
            if not self.allows(token_id, [*output_ids, *draft_ids[:place]]):
                return list(draft_ids[:place])
        return list(draft_ids)

    def process(self, logits_row: Float32[np.ndarray, " candidates"], output_ids: Sequence[int]) -> ProcessedLaw:
        """Return the law of the token that follows ``output_ids``; the row is left as it is.

        Args:
            logits_row: The model's logits at that position.
            output_ids: The output before it, accepted or hypothetical, prompt apart.

        Returns:
            The processed law; one-hot if greedy.

        Raises:
            FloatingPointError: The largest logit is not finite.
            DeadEndError: The constraint leaves no token.
        """
        self._follow(output_ids)
        return self._law(logits_row, len(output_ids))

    def laws(
        self,
        logits_rows: Float32[np.ndarray, "rows candidates"],
        output_ids: Sequence[int],
        draft_ids: Sequence[int],
    ) -> Iterator[ProcessedLaw]:
        """Yield the law at each position of a draft, computed when asked for, so a rejection ends the work.

        Args:
            logits_rows: Row i holds the logits after ``output_ids`` and the first i draft tokens.
            output_ids: The accepted output, prompt apart. Must not change while the laws are read.
            draft_ids: The draft, one token less than there are rows (the last law is that of the bonus token).

        Yields:
            ``len(draft_ids) + 1`` laws. Finish or drop this iterator before another call on the processor.

        Raises:
            FloatingPointError: The largest logit of a row is not finite.
            DeadEndError: The constraint leaves no token at a position.
        """
        for position in self._positions(output_ids, draft_ids):
            yield self._law(logits_rows[position], len(output_ids) + position)

    def greedy_tokens(
        self,
        logits_rows: Float32[np.ndarray, "rows candidates"],
        output_ids: Sequence[int],
        draft_ids: Sequence[int],
    ) -> Iterator[int]:
        """Yield the greedy token at each position of a draft, as :meth:`laws` does; a plain row costs one argmax.

        Args:
            logits_rows: Row i holds the logits after ``output_ids`` and the first i draft tokens.
            output_ids: The accepted output, prompt apart. Must not change while the tokens are read.
            draft_ids: The draft, one token less than there are rows.

        Yields:
            ``len(draft_ids) + 1`` token ids.

        Raises:
            FloatingPointError: The largest logit of a row is not finite.
            DeadEndError: The constraint leaves no token at a position.
        """
        for position in self._positions(output_ids, draft_ids):
            yield self._greedy(self._adjusted(logits_rows[position], len(output_ids) + position))

    def reported_law(self, logits_row: Float32[np.ndarray, " candidates"], output_ids: Sequence[int]) -> ProcessedLaw:
        """Return the law that log-probabilities are reported from: the processed law.

        The greedy law is one-hot and would report zeros, so greedy reports the law after step 4, at temperature 1.

        Args:
            logits_row: The model's logits at that position.
            output_ids: The output before it, prompt apart.

        Returns:
            A law to call :meth:`~forerun.engine.law.ProcessedLaw.logprob` on.

        Raises:
            FloatingPointError: The largest logit is not finite.
            DeadEndError: The constraint leaves no token.
        """
        if not self._params.is_greedy:
            return self.process(logits_row, output_ids)
        self._follow(output_ids)
        scores = self._adjusted(logits_row, len(output_ids)).copy()
        return ProcessedLaw(vocab_size=self._vocab_size, ids=self._candidate_ids, scores=scores)

    def _positions(self, output_ids: Sequence[int], draft_ids: Sequence[int]) -> Iterator[int]:
        self._follow(output_ids)
        for position, token_id in enumerate(chain(draft_ids, (None,))):
            yield position
            if token_id is None:
                continue
            if self._penalties is not None:
                self._penalties.add(token_id)
            if self._constraint is not None:
                self._constraint.add(token_id)

    def _follow(self, output_ids: Sequence[int]) -> None:
        if self._penalties is not None:
            self._penalties.follow(output_ids)
        if self._constraint is not None:
            self._constraint.follow(output_ids)

    def _law(self, row: Float32[np.ndarray, " candidates"], num_output_tokens: int) -> ProcessedLaw:
        row = self._adjusted(row, num_output_tokens)
        if self._params.is_greedy:
            return ProcessedLaw.one_hot(self._greedy(row), vocab_size=self._vocab_size)
        scores = row / np.float32(self._params.temperature)
        kept = surviving_indices(scores, self._params)
        if kept is None:
            return ProcessedLaw(vocab_size=self._vocab_size, ids=self._candidate_ids, scores=scores)
        ids = kept if self._candidate_ids is None else self._candidate_ids[kept]
        return ProcessedLaw(vocab_size=self._vocab_size, ids=ids, scores=scores[kept])

    def _adjusted(
        self, row: Float32[np.ndarray, " candidates"], num_output_tokens: int
    ) -> Float32[np.ndarray, " candidates"]:
        """Return the row after steps 1 to 4: itself where they change nothing, else a changed copy."""
        assert row.shape == (self._num_candidates,), f"row {row.shape} for {self._num_candidates} candidates"
        is_masked = num_output_tokens < self._params.min_tokens
        if not is_masked and self._penalties is None and self._biases.size == 0 and self._constraint is None:
            return row
        row = row.copy()
        row[self._bias_columns] += self._biases
        if self._penalties is not None:
            self._penalties.apply(row)
        if is_masked:
            row[self._ending_columns] = -np.inf
        if self._constraint is not None:
            self._restrict(row, self._constraint, num_output_tokens)
        return row

    def _restrict(
        self, row: Float32[np.ndarray, " candidates"], constraint: TokenConstraint, num_output_tokens: int
    ) -> None:
        """Carry out step 4 in place."""
        allowed = constraint.allowed()
        row[~(allowed if self._candidate_ids is None else allowed[self._candidate_ids])] = -np.inf
        if row.max() == -np.inf:
            reason = "every token that it allows is banned" if allowed.any() else constraint.problem
            raise DeadEndError(
                f"the constraint leaves no token after {num_output_tokens} tokens of output ({reason}); widen it, or "
                "relax logit_bias, min_tokens or stop_token_ids",
                num_output_tokens=num_output_tokens,
            )

    def _greedy(self, row: Float32[np.ndarray, " candidates"]) -> int:
        column = int(row.argmax())
        _require_finite(float(row[column]))
        return column if self._candidate_ids is None else int(self._candidate_ids[column])

    def _columns(self, token_ids: Sequence[int]) -> Int64[np.ndarray, " columns"]:
        ids = np.array(token_ids, np.int64)
        if self._candidate_ids is None:
            return ids
        return np.flatnonzero(np.isin(self._candidate_ids, ids))


def surviving_indices(
    scores: Float32[np.ndarray, " candidates"], params: SamplingParams
) -> Int64[np.ndarray, " survivors"] | None:
    """Return the candidates to which top-k, top-p and min-p leave a probability.

    Each of the three finds a cut and keeps the scores that reach it. The cuts are exact; that they are found on few
    candidates is what makes them cheap.

    Args:
        scores: Logits after the temperature.
        params: Sampling parameters.

    Returns:
        Ascending indices; ``None`` if none of the three is set, and all survive.

    Raises:
        FloatingPointError: The largest score is not finite.
    """
    kept: Int64[np.ndarray, " survivors"] | None = None
    for threshold, find_cut in (
        (params.top_k if 0 < params.top_k < scores.shape[0] else None, _top_k_cut),
        (params.top_p if params.top_p < 1 else None, _top_p_cut),
        (params.min_p if params.min_p > 0 else None, _min_p_cut),
    ):
        if threshold is not None:
            reached = np.flatnonzero(scores >= np.float32(find_cut(scores, threshold)))
            kept = reached if kept is None else kept[reached]
            scores = scores[reached]
    return kept


def _top_k_cut(scores: Float32[np.ndarray, " candidates"], top_k: float) -> float:
    """Return the k-th largest score."""
    k = int(top_k)
    num_groups = max(4 * k, _MIN_GROUPS)
    group_size = scores.shape[0] // num_groups
    if group_size > 1:
        # Each group's largest is a score, so the k-th largest of those can't be above the k-th largest score.
        largest = scores[: num_groups * group_size].reshape(group_size, num_groups).max(axis=0)
        scores = scores[scores >= np.partition(largest, -k)[-k]]
    return float(np.partition(scores, -k)[-k])


def _top_p_cut(scores: Float32[np.ndarray, " candidates"], top_p: float) -> float:
    """Return the smallest score among the fewest tokens whose probability reaches ``top_p``.

    Sums are of whole units, so that :func:`forerun.nn.truncation.truncation_cut` finds the same token on any device.
    """
    largest = _finite_max(scores)
    total = sum_exp_units(scores, largest)
    # Together, tokens below the mean share of the excluded mass hold less than that mass: none of them is needed.
    share = math.log((1 - top_p) * (total / UNITS) / scores.shape[0])
    needed = scores[scores >= np.float32(largest + share - _SLACK_NATS)]
    needed = np.sort(needed)[::-1]
    cumulative = np.cumsum(exp_units(needed, largest)).astype(np.float64)
    last = int(np.searchsorted(cumulative, top_p * float(total), side="left"))
    return float(needed[min(last, needed.shape[0] - 1)])


def _min_p_cut(scores: Float32[np.ndarray, " candidates"], min_p: float) -> float:
    """Return the score of a token ``min_p`` times as likely as the most likely one."""
    return _finite_max(scores) + math.log(min_p)


def _finite_max(scores: Float32[np.ndarray, " candidates"]) -> float:
    largest = float(scores.max())
    _require_finite(largest)
    return largest


def _require_finite(largest: float) -> None:
    if not math.isfinite(largest):
        raise FloatingPointError(f"largest logit is {largest}: logits must be finite somewhere, never NaN or +inf")
