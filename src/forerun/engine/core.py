"""The engine core: admit requests, prefill, then rounds of draft, verify, emit, until all are done."""

import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from forerun.core.protocols import LanguageModel
from forerun.core.rng import uniform
from forerun.core.rows import Rows
from forerun.engine.config import Verification
from forerun.engine.metrics import DecodeCounters
from forerun.engine.outputs import StreamChunk, TokenLogprob, TokenOrigin
from forerun.engine.request import Request
from forerun.engine.speculative.controller import Controller
from forerun.engine.speculative.coupling import coupled_tokens, verify_equal
from forerun.engine.speculative.rejection import verify_rejection
from forerun.engine.speculative.speculator import Speculation, Speculator

_PREFILL_ROWS = 192


class EngineCore:
    """Decodes requests side by side with one target.

    A round verifies every running request in one pass of the target; requests join when a sequence is free and leave
    when they end, so a batch is never held up by its longest member.

    Args:
        target: The target model.
        verification: How a draft with chance in it is verified.
        counters: Counts what happens.
    """

    def __init__(self, target: LanguageModel, *, verification: Verification, counters: DecodeCounters) -> None:
        self._target, self._verification, self._counters = target, verification, counters

    def run(self, requests: Sequence[Request], speculator: Speculator, controller: Controller) -> Iterator[StreamChunk]:
        """Decode requests to their ends.

        Args:
            requests: Their prompts fit the target's capacity.
            speculator: Makes the drafts.
            controller: Limits them.

        Yields:
            Each request's text and tokens as they are decided.

        Effects:
            Writes the target's cache. Closing the iterator early leaves requests unfinished and the speculator clean.
        """
        waiting, running = deque(requests), list[Request]()
        free = list(range(self._target.num_sequences))[::-1]
        try:
            while waiting or running:
                while waiting and free:
                    request = waiting.popleft()
                    request.sequence = free.pop()
                    running.append(request)
                    yield self._prefill(request, speculator)
                active = [request for request in running if request.finish_reason is None]
                if active:
                    yield from self._round(active, speculator, controller)
                for request in [request for request in running if request.finish_reason is not None]:
                    running.remove(request)
                    free.append(request.sequence)
                    speculator.finish(request)
        finally:
            for request in running:
                speculator.finish(request)

    def _prefill(self, request: Request, speculator: Speculator) -> StreamChunk:
        """Run the prompt through the target and decide the first token."""
        started = time.perf_counter()
        speculator.start(request)
        prompt = list(request.prompt_ids)
        logits = np.empty((0, 0), np.float32)
        for first in range(0, len(prompt), _PREFILL_ROWS):
            part = prompt[first : first + _PREFILL_ROWS]
            logits = self._target.forward(
                Rows.chains([(request.sequence, first, part)]), logit_rows=np.array([len(part) - 1])
            )
        chunk = self._decide(request, logits, Speculation(), speculator)[0]
        self._counters.prefill_s += time.perf_counter() - started
        self._counters.num_first_tokens += len(chunk.token_ids)
        return chunk

    def _round(
        self, requests: Sequence[Request], speculator: Speculator, controller: Controller
    ) -> Iterator[StreamChunk]:
        """Draft, verify and emit for every running request."""
        counters, started = self._counters, time.perf_counter()
        limit = controller.num_speculative_tokens(len(requests))
        limits = [
            max(
                0, min(limit, request.num_remaining_tokens - 1, self._target.capacity - request.num_computed_tokens - 2)
            )
            for request in requests
        ]
        speculations = speculator.speculate(requests, limits)
        assert all(len(some.token_ids) <= most for some, most in zip(speculations, limits, strict=True)), (
            f"a draft is longer than allowed: {speculations}, {limits}"
        )
        order = sorted(range(len(requests)), key=lambda index: requests[index].sequence)
        parts = [
            (
                requests[i].sequence,
                requests[i].num_computed_tokens,
                [requests[i].output_ids[-1], *speculations[i].token_ids],
            )
            for i in order
        ]
        forward_started = time.perf_counter()
        logits = self._target.forward(Rows.chains(parts))
        forward_s = time.perf_counter() - forward_started
        chunks: list[StreamChunk] = []
        accepted: list[int] = []
        place = 0
        for index in order:
            request, speculation = requests[index], speculations[index]
            num_rows = len(speculation.token_ids) + 1
            chunk, num_accepted = self._decide(request, logits[place : place + num_rows], speculation, speculator)
            place += num_rows
            chunks.append(chunk)
            accepted.append(num_accepted)
            counters.num_verifications += 1
            counters.num_proposed += len(speculation.token_ids)
            counters.num_accepted += num_accepted
            counters.accepted_counts[num_accepted] += 1
            if speculation.is_hit is not None:
                counters.num_look_ups += 1
                counters.num_hits += speculation.is_hit
        round_s = time.perf_counter() - started
        counters.num_rounds += 1
        counters.decode_s += round_s
        counters.forward_s += forward_s
        if all(speculation.is_hit for speculation in speculations):
            counters.hit_s += round_s
            counters.hit_forward_s += forward_s
        proposed = [len(speculations[index].token_ids) for index in order]
        controller.observe(proposed=proposed, accepted=accepted, round_s=round_s)
        yield from chunks

    def _decide(
        self, request: Request, logits: np.ndarray, speculation: Speculation, speculator: Speculator
    ) -> tuple[StreamChunk, int]:
        """Verify a draft against the target's logits and append what follows; return the chunk and how many it kept."""
        draft = speculation.token_ids
        num_accepted, token = self._verify(request, logits, speculation, speculator)
        tokens = [*draft[:num_accepted], token]
        origins: list[TokenOrigin] = [speculation.origin] * num_accepted
        origins.append("target")
        logprobs = self._logprobs(request, logits, tokens)
        before = len(request.output_ids)
        text = request.append(tokens, origins, logprobs)
        kept = slice(before, len(request.output_ids))
        is_first = before == 0
        request.round_number += 1
        if not is_first and request.finish_reason is None:
            speculator.observe(request, num_accepted)
        num_kept = len(request.output_ids) - before
        self._counters.num_tokens += num_kept
        chunk = StreamChunk(
            index=request.index,
            text=text,
            token_ids=tuple(request.output_ids[kept]),
            origins=tuple(request.origins[kept]),
            logprobs=tuple(logprobs[:num_kept]),
            finish_reason=request.finish_reason,
        )
        return chunk, min(num_accepted, num_kept)

    def _verify(
        self, request: Request, logits: np.ndarray, speculation: Speculation, speculator: Speculator
    ) -> tuple[int, int]:
        params, output, draft = request.params, request.output_ids, speculation.token_ids
        if params.is_greedy:
            return verify_equal(request.processor.greedy_tokens(logits, output, draft), draft)
        seed, first_position = params.seed or 0, len(request.prompt_ids) + len(output)
        target_laws = request.processor.laws(logits, output, draft)
        if self._verification == "coupled":
            tokens = coupled_tokens(target_laws, seed=seed, request=request.number, first_position=first_position)
            return verify_equal(tokens, draft)
        return verify_rejection(
            target_laws,
            draft,
            speculator.laws(request, speculation),
            lambda index, purpose: uniform(seed, request.number, first_position + index, purpose),
        )

    @staticmethod
    def _logprobs(request: Request, logits: np.ndarray, tokens: Sequence[int]) -> list[TokenLogprob]:
        num_top = request.params.logprobs
        if num_top is None:
            return []
        return [
            request.processor.reported_law(logits[index], [*request.output_ids, *tokens[:index]]).logprob(
                token, num_top=num_top
            )
            for index, token in enumerate(tokens)
        ]
