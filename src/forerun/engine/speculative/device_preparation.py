"""Outcomes prepared by a draft on a device, and the look-up of those that came."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forerun.core.protocols import Pending
from forerun.engine.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundOutcome:
    """What a look-up gives.

    Attributes:
        branch: The place of the outcome that came among those prepared.
        tokens: Its continuation; none if the outcome was not predicted.
        num_prepared: Tokens that were prepared, for any outcome.
    """

    branch: int = 0
    tokens: tuple[int, ...] = ()
    num_prepared: int = 0


class Preparation:
    """Outcomes that are being prepared in one launch, for the verification of some requests.

    Args:
        pending: Their table, as of :meth:`forerun.engine.speculative.draft_round.DraftRounds.prepare`. It is on its way
            to the host as soon as it is there, so looking up takes no launch.
        requests: As they were before that verification.
    """

    def __init__(self, pending: Pending, requests: Sequence[Request]) -> None:
        self._pending = pending
        self._begun = {request.index: (request.sequence, len(request.output_ids)) for request in requests}

    def look_up(self, requests: Sequence[tuple[Request, int]]) -> list[FoundOutcome]:
        """Return what is prepared for the outcomes that came, for some of the requests, each with its limit."""
        begun = [self._begun[request.index] for request, _ in requests]
        tables = self._pending.result()[[sequence for sequence, _ in begun]]
        outcomes = np.array(
            [
                (len(request.output_ids) - num_output - 1, request.output_ids[-1])
                for (request, _), (_, num_output) in zip(requests, begun, strict=True)
            ]
        )
        is_it = (tables[:, :, :2] == outcomes[:, None]).all(axis=2)
        branches = is_it.argmax(axis=1)
        places = np.arange(len(requests))
        is_hit = is_it[places, branches].tolist()
        continuations = tables[places, branches, 2:].tolist()
        num_prepared = tables[0, :, 2:].size
        return [
            FoundOutcome(branch=branch, tokens=valid_tokens(tokens, limit) if hit else (), num_prepared=num_prepared)
            for (_, limit), branch, tokens, hit in zip(requests, branches.tolist(), continuations, is_hit, strict=True)
        ]


def valid_tokens(tokens: list[int], limit: int) -> tuple[int, ...]:
    """Return the first tokens, up to one that could not be chosen."""
    kept = tokens[:limit]
    return tuple(kept[: kept.index(-1)] if -1 in kept else kept)
