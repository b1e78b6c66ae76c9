"""Speculative speculative decoding, the target's side: look the outcome up, tell the drafter, never wait on a hit."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace

from forerun.core.errors import DrafterError
from forerun.engine.config import SpeculativeConfig
from forerun.engine.law import ProcessedLaw
from forerun.engine.request import Request
from forerun.engine.speculative.controller import BranchBudget
from forerun.engine.speculative.drafter_link import DrafterLink
from forerun.engine.speculative.drafter_restart import DrafterRestarts
from forerun.engine.speculative.fallback_length import FallbackLength
from forerun.engine.speculative.messages import FinishMessage, Message, OutcomeMessage, StartMessage
from forerun.engine.speculative.ngram import context_continuation
from forerun.engine.speculative.outcome_recorder import OutcomeRecorder
from forerun.engine.speculative.speculator import Speculation
from forerun.engine.speculative.target_states import TargetStates

_POLL_S = 20e-6


class SsdSpeculator:
    """Takes drafts from the speculation cache that the drafter fills while the target verifies.

    Round r of a request ends in an outcome; the drafter has been preparing for likely ones. A predicted outcome brings
    its continuation at once, as deep as it is ready (*anytime*); only then is the drafter told. On a miss the fallback
    drafts: the neural draft while the target waits (with a deadline), n-gram look-up, or nothing. If the drafter dies
    or hangs, one warning is given and decoding goes on with the target alone, until another drafter is ready, if one is
    started; it then reads the texts of all requests. The output is the same.

    Args:
        drafter: The drafter, in a process of its own.
        config: How drafts are made.
        num_speculative_tokens: K of the first round; later rounds prepare one token more than the last limit.
        branch_budget: Sets B, the outcomes to prepare.
        fallback_length: Sets how many tokens the target waits for on a miss.
        states: Of the target, where the draft reads them; ``None``: it has only its own.
        restarts: Starts other drafters; ``None``: there are no others.

    Reference:
        Kumar, Dao and May 2026 (arXiv 2603.03251).
    """

    def __init__(
        self,
        drafter: DrafterLink,
        config: SpeculativeConfig,
        *,
        num_speculative_tokens: int,
        branch_budget: BranchBudget,
        fallback_length: FallbackLength,
        states: TargetStates | None = None,
        restarts: DrafterRestarts | None = None,
    ) -> None:
        self._drafter, self._config, self._states, self._restarts = drafter, config, states, restarts
        self.num_speculative_tokens = num_speculative_tokens
        self.branch_budget = branch_budget
        self._fallback_length = fallback_length
        self._fallbacks: dict[int, int] = {}
        self._has_drafter = True
        self._requests: dict[int, Request] = {}
        self._last_accepted: dict[int, int] = {}
        self._recorder = OutcomeRecorder(drafter.cache)

    @property
    def is_alive(self) -> bool:
        """Whether there is a drafter; one that has been started in the place of another is taken into use."""
        if not self._has_drafter and self._restarts is not None:
            drafter = self._restarts.poll()
            if drafter is not None:
                self._take_over(drafter)
        return self._has_drafter

    def start(self, request: Request) -> None:
        """Let the drafter read the prompt, and prepare for the first token, while the target prefills."""
        self._requests[request.index] = request
        self._last_accepted[request.index] = 0
        self._send(
            StartMessage(
                request=request.sequence,
                number=request.number,
                params=request.params,
                prompt_ids=list(request.prompt_ids),
                output_ids=request.output_ids[:-1],
                round_number=request.round_number,
                branch_budget=self.branch_budget.value,
                max_depth=self.num_speculative_tokens,
            )
        )

    def speculate(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Speculation]:
        """Return what is prepared; requests that missed wait for their fallback together, the others don't."""
        if not self.is_alive:
            return [Speculation(origin="fallback") for _ in requests]
        self._fallback_length.begin_round()
        found = [self._take(request, limit) for request, limit in zip(requests, limits, strict=True)]
        for index, request in enumerate(requests):
            num_tokens = self._fallbacks.get(request.index, 0)
            if num_tokens > 0:
                found[index] = self._wait(request, num_tokens, found[index])
        self._recorder.learn_drafts(requests, found)
        self._fallback_length.begin_verification(sum(len(speculation.token_ids) for speculation in found))
        return found

    def prepare(self) -> None:
        """Nothing to do here: the drafter begins as soon as it knows the draft."""

    def laws(self, request: Request, speculation: Speculation) -> Sequence[ProcessedLaw | None]:
        """Fetch the laws of a draft, published while the target ran; n-gram tokens were chosen without chance.

        If the drafter ends before it has sent them, ``None`` stands for each: a token may always be verified as if it
        had been chosen without chance, it is only accepted less often.
        """
        count = len(speculation.token_ids)
        if (
            count == 0
            or request.params.is_greedy
            or (speculation.origin == "fallback" and self._config.fallback == "ngram")
        ):
            return [None] * count
        laws: list[ProcessedLaw] | None = None
        while self._has_drafter and laws is None:
            laws = self._drafter.cache.laws(
                request.sequence, request.round_number, vocab_size=self._drafter.vocab_size, count=count
            )
            if laws is None:
                self._check()
                time.sleep(_POLL_S)
        return [None] * count if laws is None else laws

    def observe(self, request: Request, num_accepted: int) -> None:
        """Keep the outcome for the next look-up."""
        self._last_accepted[request.index] = num_accepted
        self._fallback_length.learn_outcome(num_accepted, fallback=self._fallbacks.pop(request.index, 0))

    def finish(self, request: Request) -> None:
        """Let the drafter forget a request."""
        self._requests.pop(request.index, None)
        self._last_accepted.pop(request.index, None)
        self._fallbacks.pop(request.index, None)
        self._recorder.forget(request)
        if self._states is not None:
            self._states.forget(request)
        self._send(FinishMessage(request=request.sequence))

    def close(self) -> None:
        """End the drafter, and one that is being started."""
        if self._restarts is not None:
            self._restarts.close()
        self._drafter.close()

    def _take(self, request: Request, limit: int) -> Speculation:
        """Look the last outcome up, and tell the drafter what the next round verifies."""
        if not self._has_drafter:
            return Speculation(origin="fallback")
        self._check()
        round_number, token = request.round_number, request.output_ids[-1]
        num_accepted = self._last_accepted[request.index]
        hit = self._drafter.cache.look_up(request.sequence, round_number - 1, num_accepted=num_accepted, token=token)
        num_prepared = self._drafter.cache.num_prepared(request.sequence, round_number - 1)
        look_up = self._recorder.look_up(request, round_number - 1, num_accepted=num_accepted, hit=hit)
        branch, tokens = (-1, []) if hit is None else (hit.branch, hit.tokens[:limit])
        is_ready = bool(tokens)
        if limit > 0:
            self.branch_budget.observe(is_hit=hit is not None, is_deep=hit is not None and hit.depth >= limit)
        proposed: list[int] = []
        num_draft = 0
        if not is_ready and limit > 0:
            if self._config.fallback == "ngram":
                proposed = context_continuation(request, num_tokens=limit)
            elif self._config.fallback == "neural":
                num_draft = self._fallbacks[request.index] = self._fallback_length.choose(limit)
        if self._states is not None:
            self._drafter.states.put(request.sequence, *self._states.take(request))
        self._send(
            OutcomeMessage(
                request=request.sequence,
                round_number=round_number,
                num_accepted=num_accepted,
                token=token,
                branch=branch if is_ready else -1,
                num_used=len(tokens),
                num_draft=num_draft,
                proposed=proposed,
                branch_budget=self.branch_budget.value,
                max_depth=min(limit + 1, max(0, request.num_remaining_tokens - 1)) if limit > 0 else 0,
            )
        )
        return Speculation(
            token_ids=tuple(tokens if is_ready else proposed),
            origin="cache_hit" if is_ready else "fallback",
            is_hit=is_ready if is_ready or limit > 0 else None,
            num_prepared=num_prepared,
            look_up=look_up,
        )

    def _wait(self, request: Request, num_tokens: int, missed: Speculation) -> Speculation:
        """Wait for the neural fallback of a request that missed."""
        started = time.perf_counter()
        tokens: list[int] = []
        while self._has_drafter and len(tokens) < num_tokens:
            tokens = self._drafter.cache.draft(request.sequence, request.round_number)
            if len(tokens) < num_tokens:
                self._check()
                time.sleep(_POLL_S)
        self._fallback_length.learn_wait(num_tokens, time.perf_counter() - started)
        return replace(missed, token_ids=tuple(tokens[:num_tokens]))

    def _send(self, message: Message) -> None:
        if self._has_drafter:
            try:
                self._drafter.send(message)
            except DrafterError as error:
                self._give_up(error)

    def _check(self) -> None:
        try:
            self._drafter.check_alive(self._config.drafter_timeout_s)
        except DrafterError as error:
            self._give_up(error)

    def _give_up(self, error: DrafterError) -> None:
        """Go on without the drafter."""
        self._has_drafter = False
        follows = self._restarts is not None and self._restarts.lose()
        ending = " until another drafter is ready" if follows else ""
        warnings.warn(f"{error}; decoding continues with the target alone{ending}", RuntimeWarning, stacklevel=2)
        self._drafter.close()

    def _take_over(self, drafter: DrafterLink) -> None:
        """Use another drafter, which has to read every request's text: as at a prefill, that is a round."""
        self._drafter, self._has_drafter = drafter, True
        self._recorder = OutcomeRecorder(drafter.cache)
        for request in list(self._requests.values()):
            self._fallbacks.pop(request.index, None)
            if self._states is not None:
                self._states.forget(request)
            request.round_number += request.is_resumed
            self.start(request)
            request.round_number += request.is_resumed
