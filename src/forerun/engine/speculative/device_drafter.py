"""Speculators whose draft runs on a device in rounds of one launch: one that the target waits for, one beside it.

Where the draft's recorder has a stream of its own, what is launched runs while the target verifies, on the same GPU or
on another; only ids cross. Nothing waits but the read of results, and there is no process, thread or message.

Under rejection verification draft tokens are drawn, and the laws they were drawn from are copied from the draft to the
target, on the device or from one to the other, for the target to verify by.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forerun.engine.config import Fallback
from forerun.engine.law import ProcessedLaw
from forerun.engine.request import Request
from forerun.engine.speculative.draft_replicas import RoundDraft
from forerun.engine.speculative.ngram import context_continuation
from forerun.engine.speculative.speculator import Speculation
from forerun.models.graph_pool import Pending

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
        tokens = _extended(self._draft, requests, limits)
        return [
            Speculation(token_ids=tokens.get(request.index, ()), laws_at=self._draft.laws_at) for request in requests
        ]

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
        depth: D of the first preparations; later ones are as deep as the longest draft that was asked for lately.
        fallback: What drafts after a miss: ``neural``, ``ngram`` or ``none``.
    """

    def __init__(self, draft: RoundDraft, *, num_outcomes: int, depth: int, fallback: Fallback) -> None:
        self._draft, self._num_outcomes, self._fallback = draft, num_outcomes, fallback
        self._asked = deque([depth], maxlen=_ROUNDS_REMEMBERED)
        self._prepared: dict[int, _Preparation] = {}
        self.is_alive = True

    def start(self, request: Request) -> None:
        """Let the draft read the prompt and prepare for the first token, while the target reads it."""
        self._draft.start(request, is_ahead=not request.is_resumed)
        if not request.is_resumed and self._draft.reads_prompts:
            self._prepare([request], [1], [Speculation()])

    def speculate(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Speculation]:
        """Return what is prepared, draft for those that missed, and prepare for all."""
        found: dict[int, Speculation] = {}
        missed: list[tuple[Request, int]] = []
        num_prepared: dict[int, int] = {}
        branches: dict[int, tuple[int, int]] = {}
        laws_at = self._draft.laws_at
        for request, limit in zip(requests, limits, strict=True):
            branch, tokens, num_prepared[request.index] = self._look_up(request, limit)
            if tokens:
                branches[request.sequence] = (branch, len(tokens))
                found[request.index] = Speculation(token_ids=tokens, origin="cache_hit", is_hit=True, laws_at=laws_at)
            elif limit > 0:
                missed.append((request, limit))
        self._draft.hand_over_branches(branches, num_outcomes=self._num_outcomes)
        drafted: dict[int, tuple[int, ...]] = {}
        if self._fallback == "neural":
            drafted = _extended(self._draft, [request for request, _ in missed], [limit for _, limit in missed])
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
        self._asked.append(max(limits))
        self._prepare(requests, limits, speculations)
        return speculations

    def laws(self, request: Request, speculation: Speculation) -> Sequence[ProcessedLaw | None]:
        """Return the laws of the draft."""
        return self._draft.laws(request, speculation)

    def observe(self, request: Request, num_accepted: int) -> None:
        """Roll the draft back to the outcome; what it prepared stays for the next round."""
        self._draft.roll_back(request)

    def finish(self, request: Request) -> None:
        """Forget a request."""
        self._prepared.pop(request.index, None)
        self._draft.forget(request)

    def close(self) -> None:
        """Nothing to release."""

    def _look_up(self, request: Request, limit: int) -> tuple[int, tuple[int, ...], int]:
        """Return the branch prepared for the outcome that came, its tokens, and how many were prepared for any.

        There are no tokens if the outcome was not predicted.
        """
        preparation = self._prepared.pop(request.index, None)
        if preparation is None or limit == 0:
            return 0, (), 0
        num_accepted = len(request.output_ids) - preparation.num_output - 1
        outcomes: np.ndarray = preparation.pending.result()[preparation.sequence]
        is_it = (outcomes[:, 0] == num_accepted) & (outcomes[:, 1] == request.output_ids[-1])
        rows = np.flatnonzero(is_it)
        num_prepared = outcomes[:, 2:].size
        if not rows.size:
            return 0, (), num_prepared
        return int(rows[0]), _valid(outcomes[rows[0], 2:], limit), num_prepared

    def _prepare(self, requests: Sequence[Request], limits: Sequence[int], speculations: Sequence[Speculation]) -> None:
        """Launch the preparation for the outcomes of the verification that is about to begin."""
        work = [
            (request, speculation.token_ids)
            for request, limit, speculation in zip(requests, limits, speculations, strict=True)
            if limit > 0
        ]
        if not work:
            return
        pending = self._draft.prepare(
            [request for request, _ in work],
            [tokens for _, tokens in work],
            num_outcomes=self._num_outcomes,
            depth=max(self._asked),
        )
        for request, _ in work:
            self._prepared[request.index] = _Preparation(pending, request.sequence, len(request.output_ids))


def _extended(draft: RoundDraft, requests: Sequence[Request], limits: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Draft for the requests whose limit is above 0; return the tokens by request, their laws handed over."""
    work = [(request, limit) for request, limit in zip(requests, limits, strict=True) if limit > 0]
    if not work:
        return {}
    tokens = draft.extend([request for request, _ in work], num_tokens=max(limit for _, limit in work)).result()
    drafted = {request.index: _valid(tokens[request.sequence], limit) for request, limit in work}
    draft.hand_over_chains({request.sequence: len(drafted[request.index]) for request, _ in work})
    return drafted


def _valid(tokens: np.ndarray, limit: int) -> tuple[int, ...]:
    """Return the first tokens, up to one that could not be chosen."""
    kept = tokens[:limit].tolist()
    return tuple(kept[: kept.index(-1)] if -1 in kept else kept)
