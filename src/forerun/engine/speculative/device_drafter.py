"""Speculators whose draft runs on a device in rounds of one launch: one that the target waits for, one beside it.

Where the draft's recorder has a stream of its own, what is launched runs while the target verifies, on the same GPU or
on another; only ids cross. Nothing waits but the read of results, and there is no process, thread or message.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forerun.core.rows import Rows
from forerun.engine.config import Fallback
from forerun.engine.law import ProcessedLaw
from forerun.engine.request import Request
from forerun.engine.speculative.draft_round import Chain, DraftRounds
from forerun.engine.speculative.ngram import context_continuation
from forerun.engine.speculative.speculator import Speculation
from forerun.models.device_runner import DeviceRunner
from forerun.models.graph_pool import Pending

_PREFILL_ROWS = 256


class DeviceDraft:
    """A draft model on a device, and how far it has read each request.

    Args:
        runner: The draft model, with a sequence for each of the target's.
    """

    def __init__(self, runner: DeviceRunner) -> None:
        self.runner = runner
        self._rounds = DraftRounds(runner)
        self._num_read: dict[int, int] = {}

    def start(self, request: Request) -> None:
        """Read what the target will read before it decides the next token; returns before it is read."""
        self._num_read[request.index] = 0
        self._read(request, request.computed_tokens())

    def forget(self, request: Request) -> None:
        """Forget a request."""
        self._num_read.pop(request.index, None)

    def extend(self, requests: Sequence[Request], *, num_tokens: int) -> Pending:
        """Draft after the last decided token of each request; see :meth:`DraftRounds.extend`."""
        chains = [self._chain(request, self._num_read[request.index], ()) for request in requests]
        for request, chain in zip(requests, chains, strict=True):
            # The last of the new tokens is chosen, and not read.
            self._num_read[request.index] = chain.start + len(chain.tokens) + num_tokens - 1
        return self._rounds.extend(chains, num_tokens=num_tokens)

    def prepare(
        self, requests: Sequence[Request], speculations: Sequence[Sequence[int]], *, num_outcomes: int, depth: int
    ) -> Pending:
        """Read what is being verified and prepare for its outcomes; see :meth:`DraftRounds.prepare`."""
        chains: list[Chain] = []
        for request, speculation in zip(requests, speculations, strict=True):
            start = request.num_computed_tokens
            self._read(request, request.computed_tokens()[:start])
            chains.append(self._chain(request, start, speculation))
            self._num_read[request.index] = start + 1 + len(speculation)
        return self._rounds.prepare(chains, num_outcomes=num_outcomes, depth=depth)

    def roll_back(self, request: Request) -> None:
        """Take note that only what is decided counts; the last decided token is still to be read."""
        self._num_read[request.index] = min(self._num_read[request.index], request.num_computed_tokens)

    def _read(self, request: Request, tokens: Sequence[int]) -> None:
        """Read the tokens of a request that have not been read yet."""
        for start in range(self._num_read[request.index], len(tokens), _PREFILL_ROWS):
            part = list(tokens[start : start + _PREFILL_ROWS])
            self.runner.read(Rows.chains([(request.sequence, start, part)]))
        self._num_read[request.index] = max(self._num_read[request.index], len(tokens))

    @staticmethod
    def _chain(request: Request, start: int, speculation: Sequence[int]) -> Chain:
        decided = [*request.prompt_ids, *request.output_ids]
        return Chain(
            sequence=request.sequence,
            start=start,
            tokens=[*decided[start:], *speculation],
            choice=request.choice,
        )


class DeviceSequentialSpeculator:
    """Speculative decoding with K draft passes in one launch; the target waits for it.

    A draft token is the likeliest, or with a temperature the one that the noise shared with the target picks. Under
    rejection verification it counts as chosen without chance, for it does not depend on the numbers used there.

    Args:
        draft: The draft model.
    """

    def __init__(self, draft: DeviceDraft) -> None:
        self._draft = draft
        self.is_alive = True

    def start(self, request: Request) -> None:
        """Let the draft read the prompt."""
        self._draft.start(request)

    def speculate(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Speculation]:
        """Draft for all requests together."""
        tokens = _extended(self._draft, requests, limits)
        return [Speculation(token_ids=tokens.get(request.index, ())) for request in requests]

    def laws(self, request: Request, speculation: Speculation) -> Sequence[ProcessedLaw | None]:
        """Return one-hot laws."""
        return [None] * len(speculation.token_ids)

    def observe(self, request: Request, num_accepted: int) -> None:
        """Roll the draft back to the outcome."""
        self._draft.roll_back(request)

    def finish(self, request: Request) -> None:
        """Forget a request."""
        self._draft.forget(request)

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True, slots=True)
class _Preparation:
    """Outcomes that are being prepared for the round that began at a length of the output."""

    pending: Pending
    sequence: int
    num_output: int


class DeviceSsdSpeculator:
    """Speculative speculative decoding with the draft beside the verification, in one process.

    A round reads what was prepared during the last verification, hands the continuation of the outcome that came to
    the target, and launches the next preparation before the target's pass. Where the outcome was not predicted, the
    target waits for a draft as in speculative decoding, or goes on with look-up in the context, or without a draft.

    Args:
        draft: The draft model, in a stream of its own or on another device, else nothing is hidden.
        num_outcomes: B.
        depth: D of the first preparations; later ones are as deep as the longest draft asked for.
        fallback: What drafts after a miss: ``neural``, ``ngram`` or ``none``.
    """

    def __init__(self, draft: DeviceDraft, *, num_outcomes: int, depth: int, fallback: Fallback) -> None:
        self._draft, self._num_outcomes, self._depth, self._fallback = draft, num_outcomes, depth, fallback
        self._prepared: dict[int, _Preparation] = {}
        self.is_alive = True

    def start(self, request: Request) -> None:
        """Let the draft read the prompt and prepare for the first token, while the target reads it."""
        self._draft.start(request)
        if not request.is_resumed:
            self._prepare([request], [1], [Speculation()])

    def speculate(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Speculation]:
        """Return what is prepared, draft for those that missed, and prepare for all."""
        found: dict[int, Speculation] = {}
        missed: list[tuple[Request, int]] = []
        num_prepared: dict[int, int] = {}
        for request, limit in zip(requests, limits, strict=True):
            tokens, num_prepared[request.index] = self._look_up(request, limit)
            if tokens:
                found[request.index] = Speculation(token_ids=tokens, origin="cache_hit", is_hit=True)
            elif limit > 0:
                missed.append((request, limit))
        drafted: dict[int, tuple[int, ...]] = {}
        if self._fallback == "neural":
            drafted = _extended(self._draft, [request for request, _ in missed], [limit for _, limit in missed])
        elif self._fallback == "ngram":
            drafted = {
                request.index: tuple(context_continuation(request, num_tokens=limit)) for request, limit in missed
            }
        for request, _ in missed:
            found[request.index] = Speculation(
                token_ids=drafted.get(request.index, ()), origin="fallback", is_hit=False
            )
        speculations = [
            replace(found.get(request.index, Speculation(origin="fallback")), num_prepared=num_prepared[request.index])
            for request in requests
        ]
        self._prepare(requests, limits, speculations)
        return speculations

    def laws(self, request: Request, speculation: Speculation) -> Sequence[ProcessedLaw | None]:
        """Return one-hot laws, as :class:`DeviceSequentialSpeculator`."""
        return [None] * len(speculation.token_ids)

    def observe(self, request: Request, num_accepted: int) -> None:
        """Roll the draft back to the outcome; what it prepared stays for the next round."""
        self._draft.roll_back(request)

    def finish(self, request: Request) -> None:
        """Forget a request."""
        self._prepared.pop(request.index, None)
        self._draft.forget(request)

    def close(self) -> None:
        """Nothing to release."""

    def _look_up(self, request: Request, limit: int) -> tuple[tuple[int, ...], int]:
        """Return the continuation prepared for the outcome that came, and how many tokens were prepared for any.

        The continuation is empty if the outcome was not predicted.
        """
        preparation = self._prepared.pop(request.index, None)
        if preparation is None or limit == 0:
            return (), 0
        num_accepted = len(request.output_ids) - preparation.num_output - 1
        outcomes: np.ndarray = preparation.pending.result()[preparation.sequence]
        is_it = (outcomes[:, 0] == num_accepted) & (outcomes[:, 1] == request.output_ids[-1])
        rows = np.flatnonzero(is_it)
        return _valid(outcomes[rows[0], 2:], limit) if rows.size else (), outcomes[:, 2:].size

    def _prepare(self, requests: Sequence[Request], limits: Sequence[int], speculations: Sequence[Speculation]) -> None:
        """Launch the preparation for the outcomes of the verification that is about to begin."""
        work = [
            (request, speculation.token_ids)
            for request, limit, speculation in zip(requests, limits, speculations, strict=True)
            if limit > 0
        ]
        if not work:
            return
        self._depth = max(self._depth, *limits)
        pending = self._draft.prepare(
            [request for request, _ in work],
            [tokens for _, tokens in work],
            num_outcomes=self._num_outcomes,
            depth=self._depth,
        )
        for request, _ in work:
            self._prepared[request.index] = _Preparation(pending, request.sequence, len(request.output_ids))


def _extended(draft: DeviceDraft, requests: Sequence[Request], limits: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Draft for the requests whose limit is above 0; return the tokens by request."""
    work = [(request, limit) for request, limit in zip(requests, limits, strict=True) if limit > 0]
    if not work:
        return {}
    tokens = draft.extend([request for request, _ in work], num_tokens=max(limit for _, limit in work)).result()
    return {request.index: _valid(tokens[request.sequence], limit) for request, limit in work}


def _valid(tokens: np.ndarray, limit: int) -> tuple[int, ...]:
    """Return the first tokens, up to one that could not be chosen."""
    kept = tokens[:limit].tolist()
    return tuple(kept[: kept.index(-1)] if -1 in kept else kept)
