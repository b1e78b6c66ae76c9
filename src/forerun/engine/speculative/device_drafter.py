"""Speculators whose draft runs on a device in rounds of one launch: one that the target waits for, one beside it.

Where the draft's recorder has a stream of its own, what is launched runs while the target verifies, on the same GPU or
on another; only ids cross. Nothing waits but the read of results, and there is no process, thread or message.

Under rejection verification draft tokens are drawn, and the laws they were drawn from are copied from the draft to the
target, on the device or from one to the other, for the target to verify by.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forerun.core.rows import Rows
from forerun.engine.config import Fallback
from forerun.engine.law import ProcessedLaw
from forerun.engine.request import Request
from forerun.engine.speculative.draft_round import Chain, DraftRounds, RoundModel
from forerun.engine.speculative.ngram import context_continuation
from forerun.engine.speculative.speculator import LawPlace, Speculation
from forerun.models.device_head import DeviceHead, FeatureLender
from forerun.models.draft_laws import DraftLaws
from forerun.models.graph_pool import Pending

_PREFILL_ROWS = 256
_ROUNDS_REMEMBERED = 16
"""Rounds whose draft lengths decide how deep a preparation is: a text near its end asks for less, and each depth is a
graph of its own."""
_MOST_CHAINED = 16
"""Tokens before a chain that are read along with it; more are read by themselves."""


class DeviceDraft:
    """A draft model on a device, and how far it has read each request.

    Args:
        runner: The draft model, with a sequence for each of the target's.
        laws: Takes the laws that drafts are drawn from; ``None``: tokens are those that the noise shared with the
            target picks.
        lender: The target, for a draft that reads its hidden states, kept already; it then reads each token anew, once
            the target has.
    """

    def __init__(
        self, runner: RoundModel, *, laws: DraftLaws | None = None, lender: FeatureLender | None = None
    ) -> None:
        self.runner = runner
        self._laws, self._lender = laws, lender
        self._num_lent: dict[int, int] = {}
        self._rounds = DraftRounds(runner, most_drawn=0 if laws is None else laws.scores.shape[1])
        self._num_read: dict[int, int] = {}

    @property
    def reads_prompts(self) -> bool:
        """Whether it can read a prompt before the target has."""
        return self._lender is None

    @property
    def laws_at(self) -> LawPlace:
        """Where the laws of what it drafts are, once they are handed over."""
        return "nowhere" if self._laws is None else "target"

    def start(self, request: Request) -> None:
        """Read what the target will read before it decides the next token; returns before it is read."""
        if self._lender is not None:
            self._num_read[request.index] = 1  # the first token is read with nothing
            return
        self._num_read[request.index] = 0
        self._read(request, request.computed_tokens())

    def forget(self, request: Request) -> None:
        """Forget a request."""
        self._num_read.pop(request.index, None)
        self._num_lent.pop(request.index, None)

    def extend(self, requests: Sequence[Request], *, num_tokens: int) -> Pending:
        """Draft after the last decided token of each request; see :meth:`DraftRounds.extend`."""
        for request in requests:
            if self._take_states(request):
                self._read(request, request.computed_tokens()[: request.num_computed_tokens])
        chains = [self._chain(request, self._num_read[request.index], ()) for request in requests]
        for request, chain in zip(requests, chains, strict=True):
            # The last of the new tokens is chosen, and not read.
            num_more = num_tokens - 1 if self._lender is None else 0
            self._num_read[request.index] = chain.start + len(chain.tokens) + num_more
        return self._rounds.extend(chains, num_tokens=num_tokens)

    def prepare(
        self, requests: Sequence[Request], speculations: Sequence[Sequence[int]], *, num_outcomes: int, depth: int
    ) -> Pending:
        """Read what is being verified and prepare for its outcomes; see :meth:`DraftRounds.prepare`."""
        chains: list[Chain] = []
        for request, speculation in zip(requests, speculations, strict=True):
            start = request.num_computed_tokens
            self._take_states(request)
            self._read(request, request.computed_tokens()[:start])
            chains.append(self._chain(request, start, speculation))
            self._num_read[request.index] = start + 1 + (len(speculation) if self._lender is None else 0)
        return self._rounds.prepare(chains, num_outcomes=num_outcomes, depth=depth)

    def hand_over_chains(self, drafts: Mapping[int, int]) -> None:
        """Copy the laws of what :meth:`extend` drafted last, if they count.

        Args:
            drafts: Tokens to take, by sequence.
        """
        if self._laws is not None:
            scores = self._rounds.chain_scores
            parts = [(sequence, scores[sequence, :count]) for sequence, count in drafts.items()]
            self._laws.put(parts, source=self.runner.recorder)

    def hand_over_branches(self, drafts: Mapping[int, tuple[int, int]], *, num_outcomes: int) -> None:
        """Copy the laws of branches that :meth:`prepare` drafted last for their sequences, if they count.

        Args:
            drafts: Branch and tokens to take, by sequence.
            num_outcomes: With which it was called.
        """
        if self._laws is not None:
            scores = self._rounds.tree_scores
            parts = [
                (sequence, scores[sequence, branch : branch + count * num_outcomes : num_outcomes])
                for sequence, (branch, count) in drafts.items()
            ]
            self._laws.put(parts, source=self.runner.recorder)

    def laws(self, request: Request, speculation: Speculation) -> list[ProcessedLaw | None]:
        """Return the laws of a draft: as handed over, or one-hot ones."""
        num_tokens = len(speculation.token_ids)
        if self._laws is None or speculation.laws_at != "target" or request.params.is_greedy:
            return [None] * num_tokens
        ids = self.runner.column_ids.cpu().numpy()
        laws: list[ProcessedLaw | None] = []
        for scores in self._laws.read(request.sequence, num_tokens):
            kept = np.flatnonzero(scores > -np.inf)
            laws.append(ProcessedLaw(vocab_size=self._laws.vocab_size, ids=ids[kept], scores=scores[kept]))
        return laws

    def roll_back(self, request: Request) -> None:
        """Take note that only what is decided counts; the last decided token is still to be read."""
        self._num_read[request.index] = min(self._num_read[request.index], request.num_computed_tokens)

    def _take_states(self, request: Request) -> bool:
        """Hand over what the target has computed; return whether the draft reads that, and much of it is new."""
        if self._lender is None:
            return False
        start, stop = self._num_lent.get(request.index, 0), request.num_computed_tokens
        if stop > start:
            assert isinstance(self.runner, DeviceHead), "states are for a draft that reads them"
            self.runner.borrow_features(request.sequence, start, stop, lender=self._lender)
            self._num_lent[request.index] = stop
        return request.num_computed_tokens - self._num_read[request.index] > _MOST_CHAINED

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

    A draft token is the likeliest, or with a temperature the one that the noise shared with the target picks, or under
    rejection verification a draw from the draft's law.

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

    def __init__(self, draft: DeviceDraft, *, num_outcomes: int, depth: int, fallback: Fallback) -> None:
        self._draft, self._num_outcomes, self._fallback = draft, num_outcomes, fallback
        self._asked = deque([depth], maxlen=_ROUNDS_REMEMBERED)
        self._prepared: dict[int, _Preparation] = {}
        self.is_alive = True

    def start(self, request: Request) -> None:
        """Let the draft read the prompt and prepare for the first token, while the target reads it."""
        self._draft.start(request)
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


def _extended(draft: DeviceDraft, requests: Sequence[Request], limits: Sequence[int]) -> dict[int, tuple[int, ...]]:
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
