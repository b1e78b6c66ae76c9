"""A pass of the target: logits for the host to choose from, or only the tokens, where the target can choose them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from forerun.core.protocols import DraftVerifier, LanguageModel, Pending, TokenModel
from forerun.core.rows import Rows
from forerun.core.selection import DraftedPart, Selection
from forerun.engine.config import Verification
from forerun.engine.request import Request
from forerun.engine.speculative.speculator import Speculation


class TargetPasses:
    """Begins passes of a target, with its tokens chosen where it computes if it can do that.

    Args:
        target: What it can do is found out here, once.
        verification: How drafts are verified.
    """

    def __init__(self, target: LanguageModel, *, verification: Verification) -> None:
        self._target: LanguageModel = target
        self._verification: Verification = verification
        self._chooser = target if isinstance(target, TokenModel) else None
        self._verifies = isinstance(target, DraftVerifier)

    def launch(
        self,
        rows: Rows,
        requests: Sequence[tuple[Request, Speculation]],
        *,
        logit_rows: np.ndarray | None = None,
    ) -> Pending:
        """Begin a pass over rows, whose results are what their tokens are decided from.

        A target that can't run while the host goes on runs when the results are asked for.

        Args:
            rows: As for :meth:`forerun.core.protocols.LanguageModel.forward`.
            requests: Each with the draft that is verified; a wanted row for each of its tokens and one more are its
                own, in order.
            logit_rows: Which rows are wanted; ``None`` for all.

        Returns:
            float32 logits ``[wanted, vocab]``; or int64 tokens ``[wanted]``, where the target chooses them itself and
            no request needs more than that: of a draft, what agrees with them is kept.
        """
        if self._chooser is not None:
            return self._chooser.launch(rows, self._selection(requests), logit_rows=logit_rows)
        return _Later(lambda: self._target.forward(rows, logit_rows=logit_rows))

    def _selection(self, requests: Sequence[tuple[Request, Speculation]]) -> Selection | None:
        """Return how the target chooses the tokens; ``None`` where one needs its logits."""
        if not all(request.has_plain_law for request, _ in requests):
            return None
        if self._verification == "coupled" or all(request.params.is_greedy for request, _ in requests):
            return Selection.of_positions(
                [
                    (request.choice, _next_position(request), len(speculation.token_ids) + 1)
                    for request, speculation in requests
                ]
            )
        if self._verifies and all(_is_verifiable(*one) for one in requests):
            return Selection.of_drafts(
                [
                    DraftedPart(
                        choice=request.choice,
                        first_position=_next_position(request),
                        token_ids=speculation.token_ids,
                        has_laws=speculation.laws_at == "target" and not request.params.is_greedy,
                    )
                    for request, speculation in requests
                ]
            )
        return None


class _Later:
    """Results that are computed when they are asked for."""

    def __init__(self, compute: Callable[[], np.ndarray]) -> None:
        self._compute = compute
        self._results: np.ndarray | None = None

    def result(self) -> np.ndarray:
        if self._results is None:
            self._results = self._compute()
        return self._results


def _is_verifiable(request: Request, speculation: Speculation) -> bool:
    """Return whether a target has all that a draft is verified by."""
    return request.params.is_greedy or not speculation.token_ids or speculation.laws_at != "speculator"


def _next_position(request: Request) -> int:
    return len(request.prompt_ids) + len(request.output_ids)


def chosen_tokens(tokens: np.ndarray) -> Iterator[int]:
    """Yield tokens that the target chose.

    Raises:
        FloatingPointError: The largest logit of a row was not finite.
    """
    for token in tokens.tolist():
        if token < 0:
            raise FloatingPointError("the largest logit is not finite: the model's numbers are broken")
        yield token
