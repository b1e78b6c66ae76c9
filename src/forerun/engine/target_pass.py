"""A pass of the target: logits for the host to choose from, or only the tokens, where the target can choose them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from forerun.core.protocols import DraftVerifier, LanguageModel, TokenModel
from forerun.core.rows import Rows
from forerun.core.selection import DraftedPart, Selection
from forerun.engine.config import Verification
from forerun.engine.request import Request
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.speculator import Speculation

_PLAIN = SamplingParams(temperature=0, max_tokens=None)


def run_target(
    target: LanguageModel,
    rows: Rows,
    requests: Sequence[tuple[Request, Speculation]],
    *,
    verification: Verification,
    logit_rows: np.ndarray | None = None,
) -> np.ndarray:
    """Run rows, and return what their tokens are decided from.

    Args:
        target: Its cache is written.
        rows: As for :meth:`forerun.core.protocols.LanguageModel.forward`.
        requests: Each with the draft that is verified; a wanted row for each of its tokens and one more are its own, in
            order.
        verification: How drafts are verified.
        logit_rows: Which rows are wanted; ``None`` for all.

    Returns:
        float32 logits ``[wanted, vocab]``; or int64 tokens ``[wanted]``, where the target chooses them itself and no
        request needs more than that: of a draft, what agrees with them is kept.
    """
    has_chance = any(not request.params.is_greedy for request, _ in requests)
    if not isinstance(target, TokenModel) or not all(has_plain_law(request.params) for request, _ in requests):
        return target.forward(rows, logit_rows=logit_rows)
    if verification == "coupled" or not has_chance:
        selection = Selection.of_positions(
            [
                (request.choice, _next_position(request), len(speculation.token_ids) + 1)
                for request, speculation in requests
            ]
        )
    elif isinstance(target, DraftVerifier) and all(_is_verifiable(*one) for one in requests):
        selection = Selection.of_drafts(
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
    else:
        return target.forward(rows, logit_rows=logit_rows)
    return target.forward_ids(rows, selection, logit_rows=logit_rows)


def has_plain_law(params: SamplingParams) -> bool:
    """Return whether only temperature, top-k, top-p and min-p shape the law, and nothing but tokens is asked for."""
    # What ends a request does not touch its law; any other parameter that is not at its default may.
    law = replace(params, stop=(), stop_token_ids=(), max_tokens=None, ignore_eos=False)
    return replace(law, temperature=0, seed=None, top_k=0, top_p=1, min_p=0) == _PLAIN


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
