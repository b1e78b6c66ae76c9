"""The engine core: one pass of the target at a time, for requests that come and go at any of them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from forerun.core.errors import ConfigError, DeadEndError, DeviceMemoryError
from forerun.core.features import FeatureSource
from forerun.core.paging import PagedModel
from forerun.core.protocols import LanguageModel, SlotCopier
from forerun.core.rng import uniform
from forerun.core.rows import Rows
from forerun.engine.config import Verification
from forerun.engine.metrics import DecodeCounters
from forerun.engine.outputs import StreamChunk, TokenLogprob, TokenOrigin
from forerun.engine.placement import PagePlacement, RowCopy, RowPlacement
from forerun.engine.request import Request
from forerun.engine.scheduler import PrefillPart, Scheduler, SchedulerConfig
from forerun.engine.speculative.controller import Controller
from forerun.engine.speculative.coupling import coupled_tokens, verify_equal
from forerun.engine.speculative.load import Load
from forerun.engine.speculative.rejection import verify_rejection
from forerun.engine.speculative.speculator import Speculation, Speculator
from forerun.engine.target_pass import TargetPasses, chosen_tokens

PREFILL_ROWS = 192
"""Rows of a pass over prompts, where nothing else waits for it."""
_ROW_BLOCK_TOKENS = 16
"""Tokens per block of a target without block tables: a prefix is found in whole blocks."""


class Drafting(Protocol):
    """A speculator and what limits its drafts."""

    @property
    def speculator(self) -> Speculator:
        """Makes the drafts."""
        ...

    @property
    def controller(self) -> Controller:
        """Limits them."""
        ...


@dataclass(frozen=True, slots=True)
class _Pair:
    speculator: Speculator
    controller: Controller


class EngineCore:
    """Decodes requests side by side with one target.

    A step is one pass of the target: over parts of prompts, or a round that verifies every decoding request. Requests
    may come and go between any two, each with its own way to draft; all drafts of a round are verified together.

    Args:
        target: The target model.
        verification: How a draft with chance in it is verified.
        counters: Counts what happens.
        scheduler: Limits of what runs at a time; by default requests to the target's sequences, prompts first.
        layer_ids: Of the target, every layer: needed where prefixes are reused and the target has no block tables.

    Raises:
        ConfigError: The cache is limited to less than one request may take.
    """

    def __init__(
        self,
        target: LanguageModel,
        *,
        verification: Verification,
        counters: DecodeCounters,
        scheduler: SchedulerConfig | None = None,
        layer_ids: Sequence[int] = (),
    ) -> None:
        self._target, self._counters = target, counters
        self._verification: Verification = verification
        self._passes = TargetPasses(target, verification=verification)
        self._tables = target if isinstance(target, PagedModel) else None
        self._block_tokens = _ROW_BLOCK_TOKENS if self._tables is None else self._tables.block_tokens
        config = scheduler or SchedulerConfig(
            max_num_seqs=target.num_sequences, max_num_batched_tokens=PREFILL_ROWS, prefers_prefill=True
        )
        self._scheduler = Scheduler[Request](
            config,
            num_blocks=self._num_blocks(config.max_cached_tokens),
            block_tokens=self._block_tokens,
            on_release=lambda request: self._draftings[request.index].speculator.finish(request),
            placement=RowPlacement(target.num_sequences) if self._tables is None else PagePlacement(),
        )
        self._limits_rounds = scheduler is not None
        self._layer_ids = tuple(layer_ids)
        self._draftings: dict[int, Drafting] = {}
        self._last_members = frozenset[int]()

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return self._scheduler.has_work

    @property
    def running(self) -> list[Request]:
        """Requests that hold blocks of the cache."""
        return self._scheduler.running

    @property
    def num_waiting(self) -> int:
        """Requests that hold none yet, or none at present."""
        return self._scheduler.num_waiting

    @property
    def num_preempted(self) -> int:
        """How often a request was put aside for another."""
        return self._scheduler.num_preempted

    @property
    def cache_usage(self) -> float:
        """As :attr:`forerun.engine.scheduler.Scheduler.cache_usage`."""
        return self._scheduler.cache_usage

    def run(self, requests: Sequence[Request], speculator: Speculator, controller: Controller) -> Iterator[StreamChunk]:
        """Decode requests to their ends.

        Args:
            requests: Their prompts fit the target's capacity.
            speculator: Makes the drafts.
            controller: Limits them.

        Yields:
            Each request's text and tokens as they are decided.

        Raises:
            FloatingPointError: The model's numbers are no numbers.

        Effects:
            Writes the target's cache. Closing the iterator early leaves requests unfinished and the speculator clean.
        """
        drafting = _Pair(speculator, controller)
        for request in requests:
            self.add_request(request, drafting)
        try:
            while self.has_work:
                for chunk in self.step():
                    if chunk.is_broken:
                        raise FloatingPointError(chunk.error)
                    yield chunk
        finally:
            for request in requests:
                if request.index in self._draftings:
                    self._remove(request)

    def add_request(self, request: Request, drafting: Drafting) -> None:
        """Let a request wait for its turn.

        Args:
            request: Its prompt fits the target's capacity; no other request here has its index.
            drafting: How drafts are made for it.
        """
        self._draftings[request.index] = drafting
        self._scheduler.add(request)

    def abort(self, request: Request, *, is_sound: bool = True) -> StreamChunk | None:
        """End a request where it stands, as cancelled; its blocks are free at once.

        Args:
            request: The request.
            is_sound: As for :meth:`forerun.engine.scheduler.Scheduler.remove`; not after a pass that failed.

        Returns:
            The text that was held back; ``None`` if it has ended before.
        """
        if request.index not in self._draftings:
            return None
        self._remove(request, is_sound=is_sound)
        text = request.end("cancelled")
        return StreamChunk(
            index=request.index, text=text, token_ids=(), origins=(), finish_reason=request.finish_reason
        )

    def switch(self, request: Request, drafting: Drafting) -> None:
        """Draft for a request another way from now on, wherever it stands; the output is the same."""
        before = self._draftings[request.index]
        if before is drafting:
            return
        self._draftings[request.index] = drafting
        if request.sequence >= 0:
            before.speculator.finish(request)
            self._start(request)

    def step(self) -> list[StreamChunk]:
        """Run one pass of the target.

        Returns:
            What it decided; empty for a part of a prompt, or without work. A request whose logits are no numbers ends
            with an error, by itself.

        Raises:
            FloatingPointError: A speculator's numbers are no numbers, or the pass failed as a whole.
            DeviceMemoryError: The pass does not fit, and one request alone runs.

        Effects:
            Writes the target's cache; requests that end leave. After an error those that run are to be aborted as not
            sound: nothing was decided for them, and what their blocks hold is not known.
        """
        plan = self._scheduler.plan()
        for copy in plan.copies:
            self._copy_blocks(copy)
        self._set_tables()
        for request in plan.admitted:
            self._start(request)
        requests = [part.request for part in plan.prefill] or plan.decode
        chunks: list[StreamChunk] = []
        try:
            if plan.prefill:
                chunks = self._prefill(plan.prefill)
            elif plan.decode:
                chunks = self._round(plan.decode)
        except DeviceMemoryError:
            # What the pass was to compute is computed anew, by fewer at a time: nothing was decided in it.
            if not self._scheduler.shrink(part.request for part in plan.prefill):
                raise
        broken = {chunk.index for chunk in chunks if chunk.is_broken}
        for request in requests:
            if request.finish_reason is not None:
                self._remove(request, is_sound=request.index not in broken)
        return chunks

    def check_integrity(self) -> None:
        """Assert that requests and sequences are accounted for."""
        self._scheduler.check_integrity()
        assert self.has_work or not self._draftings, "a request that has left is still known"

    def _remove(self, request: Request, *, is_sound: bool = True) -> None:
        self._scheduler.remove(request, is_sound=is_sound)
        del self._draftings[request.index]

    def _start(self, request: Request) -> None:
        """Let the speculator learn of a request, as at its prefill: that is a round, and no number is used twice."""
        is_resumed = request.is_resumed
        self._last_members -= {request.index}
        request.round_number += is_resumed
        self._draftings[request.index].speculator.start(request)
        request.round_number += is_resumed

    def _num_blocks(self, max_cached_tokens: int | None) -> int:
        """Return how many blocks of the cache are used."""
        most = self._target.num_sequences * -(-self._target.capacity // self._block_tokens)
        if self._tables is not None:
            most = self._tables.num_blocks
        if max_cached_tokens is None:
            return most
        if max_cached_tokens < self._target.capacity:
            raise ConfigError(
                f"max_cached_tokens={max_cached_tokens}: one request may take {self._target.capacity}; give at least "
                "that many, or a shorter context (max_model_len)"
            )
        return min(most, -(-max_cached_tokens // self._block_tokens))

    def _set_tables(self) -> None:
        """Tell the target where the texts of requests lie, as far as that has changed."""
        for sequence, blocks in self._scheduler.take_tables():
            if self._tables is not None:
                self._tables.set_blocks(sequence, blocks)

    def _copy_blocks(self, copy: RowCopy) -> None:
        """Copy cached states: where they lie if the target can, else in pieces, so that little is held at a time."""
        if isinstance(self._target, SlotCopier):
            start, stop = copy.first * self._block_tokens, copy.last * self._block_tokens
            self._target.copy_slots(copy.source, copy.target, start, stop)
            return
        end = copy.last * self._block_tokens
        for start in range(copy.first * self._block_tokens, end, PREFILL_ROWS):
            stop = min(end, start + PREFILL_ROWS)
            states = self._target.read_states(copy.source, start, stop, layer_ids=self._layer_ids)
            self._target.write_states(copy.target, start, states)
            if isinstance(self._target, FeatureSource):
                features = self._target.read_features(copy.source, start, stop)
                self._target.write_features(copy.target, start, features)

    def _prefill(self, parts: Sequence[PrefillPart[Request]]) -> list[StreamChunk]:
        """Run parts of prompts through the target, and decide the first token of those that end."""
        started = time.perf_counter()
        parts = sorted(parts, key=lambda part: part.request.sequence)
        rows = Rows.chains(
            [
                (part.request.sequence, part.start, part.request.computed_tokens()[part.start : part.stop])
                for part in parts
            ]
        )
        lasts = np.cumsum([part.stop - part.start for part in parts]) - 1
        logits = self._passes.launch(rows, [(part.request, Speculation()) for part in parts], logit_rows=lasts).result()
        chunks = [
            self._decide(part.request, logits[place : place + 1], Speculation())[0]
            for place, part in enumerate(parts)
            if part.decides
        ]
        self._counters.prefill_s += time.perf_counter() - started
        self._counters.num_prefilled += len(rows)
        self._counters.num_first_tokens += sum(len(chunk.token_ids) for chunk in chunks)
        return chunks

    def _speculate(self, requests: Sequence[Request], load: Load) -> list[Speculation]:
        """Let every way draft for its own requests."""
        most = self._target.capacity
        if self._limits_rounds:
            most = self._scheduler.max_num_batched_tokens // len(requests) - 1
        found: dict[int, Speculation] = {}
        by_way = sorted(requests, key=lambda request: id(self._draftings[request.index]))
        for _, group in groupby(by_way, key=lambda request: id(self._draftings[request.index])):
            members = list(group)
            drafting = self._draftings[members[0].index]
            limit = min(most, drafting.controller.num_speculative_tokens(load))
            limits = [self._room(request, limit) for request in members]
            self._set_tables()
            speculations = drafting.speculator.speculate(members, limits)
            assert all(len(some.token_ids) <= limit for some, limit in zip(speculations, limits, strict=True)), (
                f"a draft is longer than allowed: {speculations}, {limits}"
            )
            found.update(zip((request.index for request in members), speculations, strict=True))
        return [found[request.index] for request in requests]

    def _draftings_of(self, requests: Sequence[Request]) -> list[Drafting]:
        """Return every way in which requests have drafts, once."""
        draftings = [self._draftings[request.index] for request in requests]
        return [*{id(drafting): drafting for drafting in draftings}.values()]

    def _room(self, request: Request, limit: int) -> int:
        """Return how long a request's draft may be, with blocks for it; free ones, nobody is put aside for a draft."""
        first = request.num_computed_tokens + 1
        limit = min(limit, request.num_remaining_tokens - 1, self._target.capacity - first - 1)
        return self._scheduler.reserve(request, first + max(0, limit)) - first

    def _round(self, requests: Sequence[Request]) -> list[StreamChunk]:
        """Draft, verify and emit for every decoding request."""
        counters, started = self._counters, time.perf_counter()
        requests = sorted(requests, key=lambda request: request.sequence)
        load = Load.of(requests)
        speculations = self._speculate(requests, load)
        parts = [
            (request.sequence, request.num_computed_tokens, [request.output_ids[-1], *speculation.token_ids])
            for request, speculation in zip(requests, speculations, strict=True)
        ]
        forward_started = time.perf_counter()
        pending = self._passes.launch(Rows.chains(parts), list(zip(requests, speculations, strict=True)))
        prepare_started = time.perf_counter()
        for drafting in self._draftings_of(requests):
            drafting.speculator.prepare()
        prepare_s = time.perf_counter() - prepare_started
        logits = pending.result()
        # Where nothing runs side by side that is a draft's time; where it does, the pass is told a little too short.
        forward_s = time.perf_counter() - forward_started - prepare_s
        chunks: list[StreamChunk] = []
        accepted: list[int] = []
        place = 0
        for request, speculation in zip(requests, speculations, strict=True):
            num_rows = len(speculation.token_ids) + 1
            chunk, num_accepted = self._decide(request, logits[place : place + num_rows], speculation)
            place += num_rows
            chunks.append(chunk)
            accepted.append(num_accepted)
            counters.num_verifications += 1
            counters.num_proposed += len(speculation.token_ids)
            counters.num_prepared += speculation.num_prepared
            is_prepared = speculation.origin == "cache_hit"
            counters.num_unused += speculation.num_prepared - is_prepared * len(speculation.token_ids)
            counters.num_accepted += num_accepted
            counters.accepted_counts[num_accepted] += 1
            counters.proposed_counts[len(speculation.token_ids)] += 1
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
        draftings = self._draftings_of(requests)
        if len(draftings) == 1:  # the time of a round of several ways says nothing about any of them
            (drafting,) = draftings
            proposed = [len(speculation.token_ids) for speculation in speculations]
            drafting.controller.observe(
                load=load,
                proposed=proposed,
                accepted=accepted,
                round_s=round_s,
                forward_s=forward_s,
                num_new=sum(request.index not in self._last_members for request in requests),
            )
            self._last_members = frozenset(request.index for request in requests)
        return chunks

    def _decide(self, request: Request, logits: np.ndarray, speculation: Speculation) -> tuple[StreamChunk, int]:
        """Verify a draft against the target's logits and append what follows; return the chunk and how many it kept."""
        draft, speculator = speculation.token_ids, self._draftings[request.index].speculator
        before = len(request.output_ids)
        own: list[int] = []
        problem: DeadEndError | FloatingPointError | None = None
        try:
            num_accepted, token = self._verify(request, logits, speculation, speculator)
            own.append(token)
        except DeadEndError as error:
            num_accepted, problem = error.num_output_tokens - before, error
        except FloatingPointError as error:  # of this request's rows: the others of the pass have theirs
            num_accepted, problem = 0, error
        tokens = [*draft[:num_accepted], *own]
        origins: list[TokenOrigin] = [speculation.origin] * num_accepted
        origins.extend("target" for _ in own)
        logprobs = self._logprobs(request, logits, tokens)
        text = request.append(tokens, origins, logprobs)
        if problem is not None:
            text += request.end("error", str(problem))
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
            error=request.error,
            is_broken=isinstance(problem, FloatingPointError),
            look_up=speculation.look_up,
        )
        return chunk, min(num_accepted, num_kept)

    def _verify(
        self, request: Request, logits: np.ndarray, speculation: Speculation, speculator: Speculator
    ) -> tuple[int, int]:
        params, output, draft = request.params, request.output_ids, speculation.token_ids
        if logits.ndim == 1:  # the target chose its tokens itself
            return verify_equal(chosen_tokens(logits), draft)
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
