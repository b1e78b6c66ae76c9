"""A pass of the target: logits for the host to choose from, or only the tokens, where the target can choose them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from forerun.core.protocols import LanguageModel, TokenModel
from forerun.core.rows import Rows
from forerun.core.selection import Selection
from forerun.engine.config import Verification
from forerun.engine.request import Request
from forerun.engine.sampling import SamplingParams

_PLAIN = SamplingParams(temperature=0, max_tokens=None)


def run_target(
    target: LanguageModel,
    rows: Rows,
    requests: Sequence[tuple[Request, int]],
    *,
    verification: Verification,
    logit_rows: np.ndarray | None = None,
) -> np.ndarray:
    """Run rows, and return what their tokens are decided from.

    Args:
        target: Its cache is written.
        rows: As for :meth:`forerun.core.protocols.LanguageModel.forward`.
        requests: Each with the number of wanted rows that are its own, in order; they decide neighbouring positions
            from the one after its output on.
        verification: How drafts are verified.
        logit_rows: Which rows are wanted; ``None`` for all.

    Returns:
        float32 logits ``[wanted, vocab]``; or int64 tokens ``[wanted]``, where the target chooses them itself and no
        request needs more than that.
    """
    if not isinstance(target, TokenModel) or not all(needs_only_tokens(one, verification) for one, _ in requests):
        return target.forward(rows, logit_rows=logit_rows)
    selection = Selection.of_positions(
        [
            (request.choice, len(request.prompt_ids) + len(request.output_ids), num_rows)
            for request, num_rows in requests
        ]
    )
    return target.forward_ids(rows, selection, logit_rows=logit_rows)


def needs_only_tokens(request: Request, verification: Verification) -> bool:
    """Return whether the target's own token at each position is all that is asked of it.

    So it is when nothing shapes the law but temperature, top-k, top-p and min-p, and a draft is verified by comparing
    tokens.
    """
    params = request.params
    if not params.is_greedy and verification != "coupled":
        return False
    # What ends a request does not touch its law; any other parameter that is not at its default may.
    law = replace(params, stop=(), stop_token_ids=(), max_tokens=None, ignore_eos=False)
    return replace(law, temperature=0, seed=None, top_k=0, top_p=1, min_p=0) == _PLAIN


def chosen_tokens(tokens: np.ndarray) -> Iterator[int]:
    """Yield tokens that the target chose.

    Raises:
        FloatingPointError: The largest logit of a row was not finite.
    """
    for token in tokens.tolist():
        if token < 0:
            raise FloatingPointError("the largest logit is not finite: the model's numbers are broken")
        yield token
