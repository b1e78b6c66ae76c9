"""A draft model on a device, and how far it has read each request."""

from collections.abc import Mapping, Sequence

import numpy as np

from forerun.core.protocols import Pending
from forerun.core.rows import Rows
from forerun.engine.law import ProcessedLaw
from forerun.engine.request import Request
from forerun.engine.speculative.draft_round import MOST_LENT_ALONG, Chain, DraftRounds, RoundModel
from forerun.engine.speculative.speculator import LawPlace, Speculation
from forerun.models.device_head import DeviceHead, FeatureLender
from forerun.models.device_runner import DeviceRunner, LentLayers
from forerun.models.draft_laws import DraftLaws

_PREFILL_ROWS = 256
_MOST_CHAINED = 16
"""Tokens before a chain that are read along with it; more are read by themselves."""


class DeviceDraft:
    """A draft model on a device, and how far it has read each request.

    Args:
        runner: The draft model, with a sequence for each of the target's.
        laws: Takes the laws that drafts are drawn from; ``None``: tokens are those that the noise shared with the
            target picks.
        lender: The target, for a draft that reads what it has computed: hidden states, kept already, with which it
            reads each token anew; or keys and values of some layers, which take the place of its own.
    """

    def __init__(
        self, runner: RoundModel, *, laws: DraftLaws | None = None, lender: FeatureLender | LentLayers | None = None
    ) -> None:
        self.runner = runner
        self._laws, self._lender = laws, lender
        self._num_lent: dict[int, int] = {}
        self._rounds = DraftRounds(
            runner,
            most_drawn=0 if laws is None else laws.scores.shape[1],
            lender=lender if isinstance(lender, LentLayers) else None,
        )
        self._num_read: dict[int, int] = {}

    @property
    def runners(self) -> tuple[RoundModel, ...]:
        """The draft model."""
        return (self.runner,)

    @property
    def reads_prompts(self) -> bool:
        """Whether it can read a prompt before the target has."""
        return not self._reads_again

    @property
    def laws_at(self) -> LawPlace:
        """Where the laws of what it drafts are, once they are handed over."""
        return "nowhere" if self._laws is None else "target"

    def start(self, request: Request, *, is_ahead: bool, is_home: bool = True) -> None:
        """Read what the target will read before it decides the next token, unless that can wait.

        Args:
            request: Begins, or goes on after it was put aside.
            is_ahead: Whether to read it even if it could later be taken from the target.
            is_home: Whether this draft extends its chains; else there is time until it prepares for it.
        """
        self._num_lent[request.index] = 0
        self._num_read[request.index] = int(self._reads_again)  # a head reads the first token with nothing
        if self.reads_prompts and (is_ahead or (is_home and self._lender is None)):
            self._read(request, request.computed_tokens())

    def begin_round(self) -> None:
        """Let what is launched from now on find what the target was asked for so far; for a draft that reads of it.

        The passes that the target is given later are not waited for: a draft is to run beside them.
        """
        lender = self._lender.target if isinstance(self._lender, LentLayers) else self._lender
        if lender is not None:
            self.runner.recorder.wait_for(lender.recorder)

    def forget(self, request: Request) -> None:
        """Forget a request."""
        self._num_read.pop(request.index, None)
        self._num_lent.pop(request.index, None)

    def extend(self, requests: Sequence[Request], *, num_tokens: int) -> Pending:
        """Draft after the last decided token of each request; see :meth:`DraftRounds.extend`."""
        chains: list[Chain] = []
        for request in requests:
            lent = self._take_states(request)
            if self._reads_again and request.num_computed_tokens - self._num_read[request.index] > _MOST_CHAINED:
                self._read(request, request.computed_tokens())
            chains.append(self._chain(request, max(self._num_read[request.index], lent[1]), (), lent))
        pending = self._rounds.extend(chains, num_tokens=num_tokens)
        # The last of the new tokens is chosen, and not read.
        self._note_read(requests, chains, num_more=num_tokens - 1)
        return pending

    def prepare(
        self,
        requests: Sequence[Request],
        speculations: Sequence[Sequence[int]],
        *,
        num_outcomes: int,
        depth: int,
        part: tuple[int, int] | None = None,
    ) -> Pending:
        """Read what is being verified and prepare for its outcomes; see :meth:`DraftRounds.prepare`."""
        chains: list[Chain] = []
        for request, speculation in zip(requests, speculations, strict=True):
            start = request.num_computed_tokens
            lent = self._take_states(request)
            if max(self._num_read[request.index], lent[1]) < start:
                self._read(request, request.computed_tokens())
            chains.append(self._chain(request, start, speculation, lent))
        pending = self._rounds.prepare(chains, num_outcomes=num_outcomes, depth=depth, part=part)
        self._note_read(requests, chains)
        return pending

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

    @property
    def _reads_again(self) -> bool:
        """Whether it reads a token anew once the target has."""
        return isinstance(self.runner, DeviceHead) and self._lender is not None

    def _take_states(self, request: Request) -> tuple[int, int]:
        """Take what the target has computed since the last time, where that is read.

        Returns:
            First slot of those that are still to be taken, along with the request's chain, and the one after the last.
        """
        start, stop = self._num_lent[request.index], request.num_computed_tokens
        # Before the first token is decided, the target has not read the prompt.
        if self._lender is None or not request.is_resumed or stop == start:
            return 0, 0
        if isinstance(self._lender, LentLayers):
            assert isinstance(self.runner, DeviceRunner), "keys and values are for a decoder"
            if self._rounds.lends_along and stop - start <= MOST_LENT_ALONG:
                return start, stop
            self.runner.borrow_states(request.sequence, start, stop, lender=self._lender)
            self._num_read[request.index] = max(self._num_read[request.index], stop)
        else:
            assert isinstance(self.runner, DeviceHead), "hidden states are for a head"
            self.runner.borrow_features(request.sequence, start, stop, lender=self._lender)
        self._num_lent[request.index] = stop
        return 0, 0

    def _note_read(self, requests: Sequence[Request], chains: Sequence[Chain], *, num_more: int = 0) -> None:
        """Take note of chains that have been launched, and of tokens read after each."""
        for request, chain in zip(requests, chains, strict=True):
            _, lent_stop = chain.lent
            self._num_lent[request.index] = max(self._num_lent[request.index], lent_stop)
            # A draft that reads tokens anew keeps what is decided only.
            end = chain.start + len(chain.tokens) + num_more
            self._num_read[request.index] = request.num_computed_tokens + 1 if self._reads_again else end

    def _read(self, request: Request, tokens: Sequence[int]) -> None:
        """Read the tokens of a request that have not been read yet."""
        for start in range(self._num_read[request.index], len(tokens), _PREFILL_ROWS):
            part = list(tokens[start : start + _PREFILL_ROWS])
            self.runner.read(Rows.chains([(request.sequence, start, part)]))
        self._num_read[request.index] = max(self._num_read[request.index], len(tokens))

    @staticmethod
    def _chain(request: Request, start: int, speculation: Sequence[int], lent: tuple[int, int]) -> Chain:
        prompt, output = request.prompt_ids, request.output_ids
        num_prompt = len(prompt)
        return Chain(
            sequence=request.sequence,
            start=start,
            tokens=[*prompt[start:], *output[max(0, start - num_prompt) :], *speculation],
            choice=request.choice,
            lent=lent,
        )
