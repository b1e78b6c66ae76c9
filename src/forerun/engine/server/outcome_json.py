"""The outcomes that were prepared for a round, as the API writes them."""

from collections.abc import Callable, Sequence
from typing import Any

from forerun.engine.outputs import OutcomeLookUp


def outcome_json(look_up: OutcomeLookUp, text: Callable[[int], str]) -> dict[str, Any]:
    """Return a look-up as JSON types.

    Args:
        look_up: The look-up.
        text: Returns the text of a token.

    Returns:
        ``draft`` (the tokens that were verified), ``num_accepted``, ``token`` (the one after them), ``predicted`` (each
        with ``num_accepted``, ``token`` and ``continuation``) and ``came_true``, a place in ``predicted`` or ``None``.
    """

    def named(tokens: Sequence[int]) -> list[dict[str, Any]]:
        return [{"id": token, "text": text(token)} for token in tokens]

    return {
        "draft": named(look_up.draft),
        "num_accepted": look_up.num_accepted,
        "token": named([look_up.token_id])[0],
        "predicted": [
            {
                "num_accepted": outcome.num_accepted,
                "token": named([outcome.token_id])[0],
                "continuation": named(outcome.continuation),
            }
            for outcome in look_up.predicted
        ],
        "came_true": look_up.came_true,
    }
