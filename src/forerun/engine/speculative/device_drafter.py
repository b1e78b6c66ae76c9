"""Speculators whose draft runs on a device in rounds of one launch: one that the target waits for, one beside it.

Where the draft's recorder has a stream of its own, what is launched runs while the target verifies, on the same GPU or
on another; only ids cross. Nothing waits but the read of results, and there is no process, thread or message.

Under rejection verification draft tokens are drawn, and the laws they were drawn from are copied from the draft to the
target, on the device or from one to the other, for the target to verify by.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from forerun.engine.config import Fallback
from forerun.engine.law import ProcessedLaw
from forerun.engine.request import Request
from forerun.engine.speculative.device_preparation import FoundOutcome, Preparation, valid_tokens
from forerun.engine.speculative.draft_replicas import RoundDraft
from forerun.engine.speculative.fallback_length import AsPrepared, FallbackLength
from forerun.engine.speculative.ngram import context_continuation
from forerun.engine.speculative.speculator import Speculation

_ROUNDS_REMEMBERED = 16
"""Rounds whose draft lengths decide how deep a preparation is: a text near its end asks for less, and each depth is a
graph of its own."""


class DeviceSequentialSpeculator:
    """Speculative decoding with K draft passes in one launch; the target waits for it.

    A draft token is the likeliest, or with a temperature the one that the noise shared with the target picks, or under
    rejection verification a draw from the draft's law.

    Args:
        draft: The draft model.
    """

    def __init__(self, draft: RoundDraft) -> None:
        self._draft = draft
        self.is_alive = True

    def start(self, request: Request) -> None:
        """Let the draft read the prompt, if it must by itself."""
        self._draft.start(request, is_ahead=False)

    def speculate(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Speculation]:
        """Draft for all requests together."""
        self._draft.begin_round()
        tokens = _extended(self._draft, requests, limits)
        return [
            Speculation(token_ids=tokens.get(request.index, ()), laws_at=self._draft.laws_at) for request in requests
        ]

    def prepare(self) -> None:
        """Nothing is drafted before it is asked for."""

    def laws(self, request: Request, speculation: Speculation) -> Sequence[ProcessedLaw | None]:
        """Return the laws of the draft."""
        return self._draft.laws(request, speculation)

    def observe(self, request: Request, num_accepted: int) -> None:
        """Roll the draft back to the outcome."""
        self._draft.roll_back(request)

    def finish(self, request: Request) -> None:
        """Forget a request."""
        self._draft.forget(request)

    def close(self) -> None:
        """Nothing to release."""


class DeviceSsdSpeculator:
    """Speculative speculative decoding with the draft beside the verification, in one process.

    A round reads what was prepared during the last verification and hands the continuation of the outcome that came to
    the target. When the target's pass has been launched, so is the next preparation, beside it: what the host does for
    that takes no time of the target's. Where the outcome was not predicted, the target waits for a draft as in
    speculative decoding, or goes on with look-up in the context, or without a draft.

    Args:
        draft: The draft model, in a stream of its own or on another device, else nothing is hidden.
        num_outcomes: B.
        depth: D of the first preparations; later ones are as deep as the longest draft that was asked for lately.
        fallback: What drafts after a miss: ``neural``, ``ngram`` or ``none``.
        fallback_length: Sets how many tokens a neural draft after a miss has, for which all wait; by default as many as
            a prepared one.
    """

    def __init__(
        self,
        draft: RoundDraft,
        *,
        num_outcomes: int,
        depth: int,
        fallback: Fallback,
        fallback_length: FallbackLength | None = None,
    ) -> None:
        self._draft, self._num_outcomes, self._fallback = draft, num_outcomes, fallback
        self._fallback_length = fallback_length or AsPrepared()
        self._fallbacks: dict[int, int] = {}
        self._asked = deque([depth], maxlen=_ROUNDS_REMEMBERED)
        self._prepared: dict[int, Preparation] = {}
        self._begun: list[tuple[Request, tuple[int, ...]]] = []
        self.is_alive = True

    def start(self, request: Request) -> None:
        """Let the draft read the prompt and prepare for the first token, while the target reads it."""
        self._draft.start(request, is_ahead=not request.is_resumed)
        if not request.is_resumed and self._draft.reads_prompts:
            self._prepare([(request, ())])

    def speculate(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Speculation]:
        """Return what is prepared, and draft for those that missed."""
        self._draft.begin_round()
        self._fallback_length.begin_round()
        found: dict[int, Speculation] = {}
        missed: list[tuple[Request, int]] = []
        num_prepared: dict[int, int] = {}
        branches: dict[int, tuple[int, int]] = {}
        laws_at = self._draft.laws_at
        for request, limit, one in zip(requests, limits, self._look_up(requests, limits), strict=True):
            num_prepared[request.index] = one.num_prepared
            if one.tokens:
                branches[request.sequence] = (one.branch, len(one.tokens))
                found[request.index] = Speculation(
                    token_ids=one.tokens, origin="cache_hit", is_hit=True, laws_at=laws_at
                )
            elif limit > 0:
                missed.append((request, limit))
        self._draft.hand_over_branches(branches, num_outcomes=self._num_outcomes)
        drafted: dict[int, tuple[int, ...]] = {}
        if self._fallback == "neural" and missed:
            drafted = self._draft_for(missed, num_requests=len(requests))
        elif self._fallback == "ngram":
            drafted = {
                request.index: tuple(context_continuation(request, num_tokens=limit)) for request, limit in missed
            }
        for request, _ in missed:
            found[request.index] = Speculation(
                token_ids=drafted.get(request.index, ()),
                origin="fallback",
                is_hit=False,
                laws_at=laws_at if self._fallback == "neural" else "nowhere",
            )
        speculations = [
            replace(found.get(request.index, Speculation(origin="fallback")), num_prepared=num_prepared[request.index])
            for request in requests
        ]
        self._fallback_length.begin_verification(sum(len(speculation.token_ids) for speculation in speculations))
        self._asked.append(max(limits))
        self._begun = [
            (request, speculation.token_ids)
            for request, limit, speculation in zip(requests, limits, speculations, strict=True)
            if limit > 0
        ]
        return speculations

    def prepare(self) -> None:
        """Launch the preparation for the outcomes of the verification that has begun."""
        begun, self._begun = self._begun, []
        if begun:
            self._prepare(begun)

    def laws(self, request: Request, speculation: Speculation) -> Sequence[ProcessedLaw | None]:
        """Return the laws of the draft."""
        return self._draft.laws(request, speculation)

    def observe(self, request: Request, num_accepted: int) -> None:
        """Roll the draft back to the outcome; what it prepared stays for the next round."""
        self._fallback_length.learn_outcome(num_accepted, fallback=self._fallbacks.pop(request.index, 0))
        self._draft.roll_back(request)

    def finish(self, request: Request) -> None:
        """Forget a request."""
        self._prepared.pop(request.index, None)
        self._fallbacks.pop(request.index, None)
        self._draft.forget(request)

    def close(self) -> None:
        """Nothing to release."""

    def _draft_for(self, missed: Sequence[tuple[Request, int]], *, num_requests: int) -> dict[int, tuple[int, ...]]:
        """Draft for those that missed, each with its limit, while all wait, if that gains more than it costs."""
        requests, limits = [request for request, _ in missed], [limit for _, limit in missed]
        length = self._fallback_length.choose(max(limits), num_missed=len(missed), num_requests=num_requests)
        if length == 0:
            return {}
        started, num_recorded = time.perf_counter(), self._num_recorded()
        drafted = _extended(self._draft, requests, [min(limit, length) for limit in limits])
        if self._num_recorded() == num_recorded:  # to record a launch takes long, and happens once
            self._fallback_length.learn_wait(length, time.perf_counter() - started)
        self._fallbacks |= {index: len(tokens) for index, tokens in drafted.items()}
        return drafted

    def _num_recorded(self) -> int:
        return sum(runner.graphs.num_recorded for runner in self._draft.runners)

    def _look_up(self, requests: Sequence[Request], limits: Sequence[int]) -> list["FoundOutcome"]:
        """Look each outcome that came up, among those prepared for it."""
        found = [FoundOutcome()] * len(requests)
        by_launch: dict[int, list[int]] = {}
        prepared = [self._prepared.pop(request.index, None) for request in requests]
        for place, (launch, limit) in enumerate(zip(prepared, limits, strict=True)):
            if launch is not None and limit > 0:
                by_launch.setdefault(id(launch), []).append(place)
        for places in by_launch.values():
            launch = prepared[places[0]]
            assert launch is not None
            members = [(requests[place], limits[place]) for place in places]
            for place, one in zip(places, launch.look_up(members), strict=True):
                found[place] = one
        return found

    def _prepare(self, work: Sequence[tuple[Request, tuple[int, ...]]]) -> None:
        """Launch the preparation for the outcomes of drafts, those that the verification may have."""
        pending = self._draft.prepare(
            [request for request, _ in work],
            [tokens for _, tokens in work],
            num_outcomes=self._num_outcomes,
            depth=max(self._asked),
        )
        preparation = Preparation(pending, [request for request, _ in work])
        self._prepared |= {request.index: preparation for request, _ in work}


def _extended(draft: RoundDraft, requests: Sequence[Request], limits: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Draft for the requests whose limit is above 0; return the tokens by request, their laws handed over."""
    work = [(request, limit) for request, limit in zip(requests, limits, strict=True) if limit > 0]
    if not work:
        return {}
    tokens = draft.extend([request for request, _ in work], num_tokens=max(limit for _, limit in work)).result()
    drafted = {request.index: valid_tokens(tokens[request.sequence].tolist(), limit) for request, limit in work}
    draft.hand_over_chains({request.sequence: len(drafted[request.index]) for request, _ in work})
    return drafted
