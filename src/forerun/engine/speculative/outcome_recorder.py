"""What was prepared for each outcome, kept for requests that ask for it."""

from collections.abc import Sequence

from forerun.engine.outputs import OutcomeLookUp
from forerun.engine.request import Request
from forerun.engine.speculative.speculation_cache import PreparedOutcome, SpeculationCache
from forerun.engine.speculative.speculator import Speculation


class OutcomeRecorder:
    """Tells what a look-up could have found. Requests that don't ask cost a look at their flag.

    Args:
        cache: What is looked up in.
    """

    def __init__(self, cache: SpeculationCache) -> None:
        self._cache = cache
        self._drafts: dict[int, tuple[int, ...]] = {}

    def look_up(
        self, request: Request, round_number: int, *, num_accepted: int, hit: PreparedOutcome | None
    ) -> OutcomeLookUp | None:
        """Return what was prepared, or ``None`` where the request does not ask.

        Call it before the drafter learns the outcome: then it clears what it prepared.

        Args:
            request: Its last token belongs to the outcome.
            round_number: Of the verification that ended in it.
            num_accepted: Draft tokens accepted.
            hit: What the look-up found.
        """
        if not request.records_outcomes:
            return None
        return OutcomeLookUp(
            draft=self._drafts.pop(request.index, ()),
            num_accepted=num_accepted,
            token_id=request.output_ids[-1],
            predicted=tuple(self._cache.predicted(request.sequence, round_number)),
            came_true=None if hit is None else hit.branch,
        )

    def learn_drafts(self, requests: Sequence[Request], speculations: Sequence[Speculation]) -> None:
        """Keep the drafts that are verified now, for the next look-up."""
        for request, speculation in zip(requests, speculations, strict=True):
            if request.records_outcomes:
                self._drafts[request.index] = speculation.token_ids

    def forget(self, request: Request) -> None:
        """Forget a request."""
        self._drafts.pop(request.index, None)
