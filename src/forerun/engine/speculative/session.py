"""One request on the draft side: its chain of tokens, its tree of prepared outcomes, and what to run next."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from forerun.core.rows import Rows
from forerun.engine.law import ProcessedLaw
from forerun.engine.speculative.choice import DraftChoice
from forerun.engine.speculative.fan_out import joint_outcomes, shared_outcomes

FanOut = Callable[[int, int], Sequence[int]]
"""Gives F_0..F_K for (branch budget, K)."""

_TAPER = 0.6
"""Of the outcomes advanced by one token, this share is advanced by one more, the likeliest first."""
_LEAST_WIDTH = 3
"""So many are advanced at any depth."""
_MAX_CHAIN_ROWS = 256
"""Rows of a chain in one pass: a long prompt is read in parts, between which an outcome can arrive."""


@dataclass(slots=True)
class Branch:
    """A continuation prepared for one outcome.

    Attributes:
        num_accepted: k of the outcome.
        token: Its bonus or recovered token.
        tokens: The continuation so far.
        laws: Laws the tokens were drawn from, where the target needs them.
        logits: The draft's logits after ``token`` and after each token of the continuation but the last.
    """

    num_accepted: int
    token: int
    tokens: list[int]
    laws: list[ProcessedLaw | None]
    logits: list[np.ndarray]


class DraftSession:
    """Drafts for one request; a driver runs the rows it asks for and hands it the logits.

    The *chain* is the prompt, the accepted output and the speculation now being verified. Work comes in this order:
    bring the cache up to the chain; extend the speculation to the wanted length (a fallback, or plain SD); then prepare
    outcomes: choose them from the draft's logits along the speculation and advance the branches together, one token per
    pass. Where they are ranked by likelihood, each pass advances fewer than the one before: many outcomes are
    predicted, and the likeliest have the longest continuations. An outcome may arrive between any two passes; on a hit
    the branch's cached keys and values become the chain's.

    Args:
        sequence: Of the draft model's cache.
        prompt_ids: The prompt.
        choice: Draws and ranks tokens.
        capacity: Slots of the sequence.
        fan_out: Shares the branch budget.
        is_joint: Share it by the draft's own laws instead, where they are not sent to the target.
        reads_features: Whether a row needs the hidden state of the token before it, the target's or the draft's own
            (:class:`forerun.core.features.FeatureReader`).
    """

    def __init__(
        self,
        *,
        sequence: int,
        prompt_ids: Sequence[int],
        choice: DraftChoice,
        capacity: int,
        fan_out: FanOut,
        is_joint: bool = False,
        reads_features: bool = False,
    ) -> None:
        self.sequence = sequence
        self.choice = choice
        self.chain = list(prompt_ids)
        self.num_prompt = len(prompt_ids)
        self.num_committed = len(prompt_ids)
        self.laws: list[ProcessedLaw | None] = []
        self.branches: list[Branch] = []
        self.depth = 0
        self._capacity, self._fan_out = capacity, fan_out
        self._is_joint = is_joint and not choice.needs_laws
        self._num_cached = int(reads_features)  # the first token has none before it, and is not read
        self._num_featured = 0 if reads_features else None
        """Positions from the first on whose hidden states are there."""
        self._logits: dict[int, np.ndarray] = {}
        self._wanted = 0
        self._max_depth = 0
        self._budget = 0
        self._level_slots: list[int] = []
        self._is_planned = False

    @property
    def speculation(self) -> list[int]:
        """The draft tokens of the round: what follows the committed tokens in the chain."""
        return self.chain[self.num_committed :]

    @property
    def is_drafting(self) -> bool:
        """Whether the speculation is shorter than asked for."""
        return len(self.speculation) < self._wanted

    def propose(self, tokens: Sequence[int]) -> None:
        """Take a speculation from elsewhere (n-gram look-up); its tokens were chosen without chance."""
        self.chain += tokens
        self.laws += [None] * len(tokens)
        self._wanted = len(self.speculation)

    def prepare(self, *, branch_budget: int, max_depth: int) -> None:
        """Set how many outcomes to prepare for the round, and how many tokens for each."""
        self._budget, self._max_depth = branch_budget, max_depth

    def draft(self, num_tokens: int) -> None:
        """Ask for a speculation of this length."""
        self._wanted = min(num_tokens, self._capacity - self.num_committed - 1)

    def find(self, num_accepted: int, token: int) -> int | None:
        """Return the branch prepared for an outcome, if there is one."""
        for index, branch in enumerate(self.branches):
            if branch.num_accepted == num_accepted and branch.token == token:
                return index
        return None

    def commit(
        self, num_accepted: int, token: int, *, branch: int | None = None, num_used: int = 0
    ) -> list[tuple[int, int]]:
        """Take the outcome of a verification.

        Args:
            num_accepted: Accepted tokens k of the speculation.
            token: The bonus or recovered token.
            branch: The prepared branch of this outcome, if its continuation is the next speculation.
            num_used: How many tokens of the continuation are.

        Returns:
            Slots to copy in the draft model's cache, as (source, target).
        """
        keep = self.num_committed + num_accepted
        assert keep <= len(self.chain), f"{num_accepted} tokens accepted of {len(self.speculation)}"
        moves: list[tuple[int, int]] = []
        # Rows before ``keep`` are not looked at again; a row of a branch is copied, being a view of its whole pass.
        self._logits = {}
        self._num_cached = min(self._num_cached, keep)
        if self._num_featured is not None:
            self._num_featured = min(self._num_featured, keep)
        del self.chain[keep:]
        self.chain.append(token)
        self.choice.commit(self.chain[self.num_committed :])
        self.num_committed = keep + 1
        self.laws = []
        if branch is not None:
            hit = self.branches[branch]
            assert (hit.num_accepted, hit.token) == (num_accepted, token), "the branch is of another outcome"
            self.chain += hit.tokens[:num_used]
            self.laws = hit.laws[:num_used]
            # A branch that grew beyond what is used has its last used token cached, too.
            for level in range(min(num_used + 1, len(hit.logits))):
                moves.append((self._level_slots[level] + branch, keep + level))
                self._logits[keep + level] = hit.logits[level].copy()
            self._num_cached = keep + len(moves)
            if self._num_featured is not None:
                self._num_featured = self._num_cached
        self._wanted = num_used
        self.branches, self.depth, self._is_planned = [], 0, False
        return moves

    def share(self, num_positions: int) -> None:
        """Take note that the first positions of the cache now hold the target's own keys and values."""
        assert num_positions < self.num_committed, "the target has not read the last token"
        self._num_cached = max(self._num_cached, num_positions)

    def read_again(self, start: int, stop: int) -> None:
        """Take note that the target's hidden states of some positions are there; the tokens after these are read again.

        The draft had only its own for them. It takes no further pass, for the last of the tokens is new to it.
        """
        assert self._num_featured is not None, "the draft reads no hidden states"
        assert stop < self.num_committed, "the target has not read the last token"
        self._num_cached = min(self._num_cached, start + 1)
        self._num_featured = max(self._num_featured, stop)

    def rows(self) -> Rows | None:
        """Return the rows of the next pass; ``None`` when nothing is left to do, or hidden states must come first."""
        if self._num_cached < len(self.chain):
            if self._chain_end() == self._num_cached:
                return None
            return Rows.chains([(self.sequence, self._num_cached, self.chain[self._num_cached : self._chain_end()])])
        assert not self.is_drafting, "absorb() extends a chain as soon as it is cached"
        if not self._is_planned:
            self._plan()
        if not self.branches or self.depth >= self._max_depth:
            return None
        return self._tree_rows()

    def absorb(self, logits: np.ndarray) -> None:
        """Take the logits of the rows last asked for."""
        if self._num_cached < len(self.chain):
            end = self._chain_end()
            for offset, row in enumerate(logits[::-1]):
                self._logits[end - 1 - offset] = row
            self._num_cached = end
            if self._num_featured is not None:
                self._num_featured = max(self._num_featured, end)
            if end == len(self.chain) and self.is_drafting:
                token, law = self.choice.draw(
                    self._logits[len(self.chain) - 1],
                    self._output(),
                    num_prepared=self._prepared(len(self.speculation)),
                )
                self.chain.append(token)
                self.laws.append(law)
            return
        for index, branch in enumerate(self.branches[: self._width(self.depth)]):
            prefix = self.chain[self.num_prompt : self.num_committed + branch.num_accepted]
            prefix += [branch.token, *branch.tokens]
            token, law = self.choice.draw(logits[index], prefix, num_prepared=self._prepared(len(branch.tokens)))
            branch.logits.append(logits[index])
            branch.tokens.append(token)
            branch.laws.append(law)
        self.depth += 1

    def logit_rows(self, rows: Rows) -> np.ndarray:
        """Return which of the rows' logits are needed: along a chain those from the last committed token on."""
        if self._num_cached >= len(self.chain):
            return np.arange(len(rows))
        first = max(self._num_cached, self.num_committed - 1)
        return np.arange(first - self._num_cached, len(rows))

    def _chain_end(self) -> int:
        """Return where the chain's next pass ends: a row that reads a hidden state waits until it is there."""
        end = min(len(self.chain), self._num_cached + _MAX_CHAIN_ROWS)
        return end if self._num_featured is None else max(self._num_cached, min(end, self._num_featured + 1))

    def _output(self) -> list[int]:
        return self.chain[self.num_prompt :]

    def _prepared(self, place: int) -> int:
        """Return how many outcomes a full round prepares at a place of the speculation (for Saguaro sampling)."""
        if not self.choice.needs_laws or self._max_depth == 0:
            return 0
        return self._fan_out(self._budget, self._max_depth)[min(place, self._max_depth)]

    def _plan(self) -> None:
        """Choose the outcomes to prepare for, from the draft's logits along the speculation."""
        self._is_planned = True
        speculation = self.speculation
        first_slot = len(self.chain) + 1
        room = (self._capacity - first_slot) // max(1, self._max_depth)
        budget = min(self._budget, room) if self._max_depth > 0 else 0
        if budget <= 0:
            return
        output = self._output()
        num_before = len(output) - len(speculation)
        ranked: list[list[tuple[int, float]]] = []
        for num_accepted in range(len(speculation) + 1):
            row = self._logits.get(self.num_committed - 1 + num_accepted)
            before = output[: num_before + num_accepted]
            ranked.append([] if row is None else self.choice.ranked(row, before, count=budget + 1))
        if self._is_joint:
            outcomes = joint_outcomes(ranked, speculation, budget=budget)
        else:
            outcomes = shared_outcomes(ranked, speculation, fan_out=self._fan_out(budget, len(speculation)))
        self.branches = [Branch(num_accepted, token, [], [], []) for num_accepted, token in outcomes]
        widths = [self._width(level) for level in range(self._max_depth)]
        self._level_slots = [first_slot, *(first_slot + end for end in accumulate(widths))]

    def _width(self, level: int) -> int:
        """Return how many branches get a token at a level."""
        num = len(self.branches)
        return min(num, max(_LEAST_WIDTH, math.ceil(num * _TAPER**level))) if self._is_joint else num

    def _tree_rows(self) -> Rows:
        level = self.depth
        num = self._width(level)
        branches = self.branches[:num]
        accepted = np.array([branch.num_accepted for branch in branches], np.int64)
        ancestors = np.array(self._level_slots[: level + 1])[None, :] + np.arange(num)[:, None]
        return Rows(
            sequences=np.full(num, self.sequence, np.int64),
            token_ids=np.array([branch.tokens[-1] if level else branch.token for branch in branches], np.int64),
            positions=self.num_committed + accepted + level,
            slots=ancestors[:, level].copy(),
            lengths=self.num_committed + accepted,
            ancestors=ancestors.astype(np.int64),
            num_ancestors=np.full(num, level + 1, np.int64),
        )
