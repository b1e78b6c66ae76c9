r"""What a draft does in a round, as functions of fixed shape: extend a chain, and prepare for outcomes.

Each is one launch, whatever number of passes it takes: the tokens that one pass chooses are the next one's inputs
without leaving the device. Preparing is one pass over the speculation that is being verified (which caches it and gives
the laws to rank outcomes by), then D passes over B branches, each one token deeper.

Outcomes are ranked as :func:`forerun.engine.speculative.fan_out.joint_outcomes` and
:meth:`forerun.engine.speculative.choice.DraftChoice.ranked` do on the host:

.. math:: P(k, t) = p_k(t) \prod_{j < k} p_j(s_{j+1})

Where drafts are verified by rejection, tokens are drawn, and the laws that they were drawn from stay here, for a while:
of a chain until the next one is extended, of a tree until the next is prepared for its sequence.

Shape legend: N sequences, C tokens of a chain, E tokens to extend it by, B outcomes, D tokens for each, V columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from forerun.core.protocols import Pending
from forerun.core.rows import Rows
from forerun.core.selection import CHOICE_ARRAYS, FLOAT_CHOICE_ARRAYS, Choice
from forerun.engine.speculative.fan_out import REACH_NATS
from forerun.models.device_runner import DeviceRunner, LentLayers
from forerun.models.graph_pool import GraphPool, Recorder
from forerun.models.packing import PackedLayout
from forerun.models.row_grid import padded_count, padded_span
from forerun.models.slot_cache import SlotCache
from forerun.models.static_pass import PassGrid
from forerun.nn.gumbel import gumbel_noise, select_tokens
from forerun.nn.token_laws import drawn_tokens, processed_scores
from forerun.nn.truncation import Truncation, truncation_cut

MOST_LENT_ALONG: Final = 16
"""Slots of a text that a round takes from a lender at most: more than a verification decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """Tokens that a draft has yet to read, and how the ones after them are chosen.

    Attributes:
        sequence: Of the draft's cache.
        start: Slot and position of the first of the tokens; all before it are cached.
        tokens: The tokens, at least one; for :meth:`DraftRounds.prepare` the last decided one and the speculation.
        choice: How the request's tokens are chosen.
        lent: First slot of those before ``start`` that are taken from a lender in the same launch, and the one after
            the last; not more than :data:`MOST_LENT_ALONG`.
    """

    sequence: int
    start: int
    tokens: Sequence[int]
    choice: Choice
    lent: tuple[int, int] = (0, 0)


class RoundModel(Protocol):
    """A draft model in passes of fixed shape: a decoder, or a head that reads the target's hidden states.

    Attributes:
        num_sequences: Sequences of its cache.
        capacity: Slots of each for text.
        num_tree_slots: Slots of each after those, for trees.
        spare_slot: A slot of each that nobody reads.
        vocab_ids: As of a :class:`forerun.core.protocols.LanguageModel`.
        column_ids: int64 ``[V]``, the same where it computes.
        graphs: Launches its passes.
        recorder: Their order.
    """

    num_sequences: int
    capacity: int
    num_tree_slots: int
    spare_slot: int
    vocab_ids: np.ndarray | None
    column_ids: Tensor
    graphs: GraphPool
    recorder: Recorder

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    def pass_logits(self, grid: PassGrid, *, span: int, cells: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Run rows that don't wait for each other; as :meth:`forerun.models.static_pass.StaticPass.logits`."""
        ...

    def chain_logits(self, grid: PassGrid, *, span: int) -> Tensor:
        """Run rows of which each follows the one before, and return the logits of all, ``[N, C, V]``."""
        ...

    def forward(self, rows: Rows) -> np.ndarray:
        """Run rows and wait for their logits."""
        ...

    def read(self, rows: Rows) -> Pending:
        """Write what there is of rows, and return without waiting."""
        ...


class DraftRounds:
    """Runs rounds of a draft.

    Args:
        runner: The draft model.
        most_drawn: Tokens of a chain at most that are drawn, with their laws; 0: tokens are those that the noise shared
            with the target picks.
        lender: The target, where chains may have slots that are taken from it, and it is on the same device; else
            that is done before.

    Attributes:
        lends_along: Whether chains may have such slots.
        chain_scores: float32 ``[sequences, most_drawn, V]``, the laws of the last chains.
        tree_scores: float32 ``[sequences, tree slots, V]``, those of the last trees: of branch b's token of depth d in
            slot ``d * num_outcomes + b``.
    """

    def __init__(self, runner: RoundModel, *, most_drawn: int = 0, lender: LentLayers | None = None) -> None:
        self._runner = runner
        self._device = runner.column_ids.device
        self._cache: SlotCache | None = None
        self._lender = lender
        if lender is not None and isinstance(runner, DeviceRunner) and lender.target.recorder.device == self._device:
            self._cache = runner.cache
        self.lends_along = self._cache is not None
        self._draws = most_drawn > 0
        sizes = (most_drawn, runner.num_tree_slots if self._draws else 0)
        self.chain_scores, self.tree_scores = (
            torch.zeros((runner.num_sequences, size, runner.vocab_size), device=self._device) for size in sizes
        )
        runner.recorder.catch_up()

    def extend(self, chains: Sequence[Chain], *, num_tokens: int) -> Pending:
        """Draft tokens one after the other, as published speculative decoding does.

        Args:
            chains: Of different sequences, with room for the tokens.
            num_tokens: E >= 1.

        Returns:
            int64 ``[N, E]`` target ids by sequence; -1 and after it nothing of use where logits are not finite.
        """
        arrays, shape, has_noise = self._inputs(chains, num_keys=num_tokens, num_positions=num_tokens, from_end=True)
        layout = PackedLayout({name: array.shape for name, array in arrays.items()}, floats=FLOAT_CHOICE_ARRAYS)
        function = partial(self._extend, layout, num_tokens=num_tokens, span=shape.span, has_noise=has_noise)
        key = ("extend", shape, num_tokens, has_noise, "top_ks" in arrays)
        return self._runner.graphs.launch(key, function, layout.pack(arrays))

    def prepare(
        self, chains: Sequence[Chain], *, num_outcomes: int, depth: int, part: tuple[int, int] | None = None
    ) -> Pending:
        """Read the chains, choose outcomes of their verification, and draft a continuation for each.

        Args:
            chains: Of different sequences, each the last decided token and the speculation after it.
            num_outcomes: B >= 1.
            depth: D >= 1; there are as many slots for trees as outcomes to draft after, times D.
            part: First and end of the outcomes to draft after, the likeliest first, where other drafts have the
                others; ``None``: all of them.

        Returns:
            int64 ``[N, outcomes, 2 + D]``: accepted tokens k of an outcome (-1: there is none), its token, the
            continuation.
        """
        first, end = part or (0, num_outcomes)
        assert (end - first) * depth <= self._runner.num_tree_slots, "the runner has too few slots for this tree"
        arrays, shape, has_noise = self._inputs(chains, num_keys=None, num_positions=depth, from_end=False)
        arrays["drafted"] = self._drafted_columns(arrays["token_ids"])
        layout = PackedLayout({name: array.shape for name, array in arrays.items()}, floats=FLOAT_CHOICE_ARRAYS)
        ranks = _Ranks(num=num_outcomes, first=first, end=end)
        function = partial(self._prepare, layout, ranks=ranks, depth=depth, span=shape.span, has_noise=has_noise)
        key = ("prepare", shape, ranks, depth, has_noise, "top_ks" in arrays)
        return self._runner.graphs.launch(key, function, layout.pack(arrays))

    def _inputs(
        self, chains: Sequence[Chain], *, num_keys: int | None, num_positions: int, from_end: bool
    ) -> tuple[dict[str, np.ndarray], "ChainShape", bool]:
        """Lay chains out by sequence.

        Args:
            chains: Of different sequences.
            num_keys: Keys or numbers for each sequence; ``None``: for every place of the chain and those after it.
            num_positions: Tokens that follow a chain at most.
            from_end: Whether the first key is of the token after the chain; else of the one after its first token.
        """
        width = padded_count(max(len(chain.tokens) for chain in chains))
        shape = ChainShape(
            num_sequences=padded_count(1 + max(chain.sequence for chain in chains), most=self._runner.num_sequences),
            width=width,
            span=padded_span(max(chain.start for chain in chains) + width + num_positions, self._runner.capacity),
        )
        num_keys = width + num_positions if num_keys is None else num_keys
        arrays: dict[str, np.ndarray] = {
            "token_ids": np.zeros((shape.num_sequences, width), np.int64),
            "start": np.zeros(shape.num_sequences, np.int64),
            "count": np.zeros(shape.num_sequences, np.int64),
        }
        if self.lends_along:
            arrays["lent"] = np.zeros((shape.num_sequences, 2), np.int64)
            for chain in chains:
                arrays["lent"][chain.sequence] = chain.lent
        noise = "draws" if self._draws else "keys"
        arrays[noise] = np.zeros((shape.num_sequences, num_keys), np.float64 if self._draws else np.int64)
        truncates = any(chain.choice.truncates for chain in chains)
        for name in CHOICE_ARRAYS if truncates else ("temperatures",):
            arrays[name] = np.zeros(shape.num_sequences, CHOICE_ARRAYS[name])
            for chain in chains:
                arrays[name][chain.sequence] = chain.choice.numbers[name]
        for chain in chains:
            count = len(chain.tokens)
            arrays["token_ids"][chain.sequence, :count] = chain.tokens
            arrays["start"][chain.sequence], arrays["count"][chain.sequence] = chain.start, count
            positions = {"first_position": chain.start + (count if from_end else 1), "num_positions": num_keys}
            arrays[noise][chain.sequence] = (
                chain.choice.uniforms("draft", **positions) if self._draws else chain.choice.keys(**positions)
            )
        return arrays, shape, any(chain.choice.temperature > 0 for chain in chains)

    def _drafted_columns(self, token_ids: np.ndarray) -> np.ndarray:
        """Return the column of the token that follows each place of a chain; -1 where the draft has none for it."""
        following = np.concatenate([token_ids[:, 1:], np.full((len(token_ids), 1), -1)], axis=1)
        ids = self._runner.vocab_ids
        if ids is None:
            return following
        columns = np.searchsorted(ids, following).clip(0, len(ids) - 1)
        return np.where(ids[columns] == following, columns, -1)

    def _chain_grid(self, inputs: dict[str, Tensor]) -> PassGrid:
        """Return the rows of the chains; cells beyond a chain see nothing."""
        width = inputs["token_ids"].shape[1]
        place = torch.arange(width, device=self._device)
        start, count = inputs["start"].unsqueeze(1), inputs["count"].unsqueeze(1)
        is_row = place < count
        slots = start + place
        return PassGrid(
            token_ids=inputs["token_ids"],
            positions=torch.where(is_row, slots, 0),
            slots=torch.where(is_row, slots, self._runner.spare_slot),
            lengths=torch.where(inputs["count"] > 0, inputs["start"], 0),
            listed=torch.where(is_row, slots, 0),
            before=torch.where(is_row, slots - 1, 0),
            visible=(place <= place.unsqueeze(1)) & is_row.unsqueeze(1) & is_row.unsqueeze(2),
            is_dense=True,
        )

    def _take_lent(self, inputs: dict[str, Tensor]) -> None:
        """Take what the target has computed of the chains' texts, where that is read."""
        if self._cache is None:
            return
        assert self._lender is not None, "a cache is filled from somewhere"
        start, stop = inputs["lent"].unsqueeze(2).unbind(dim=1)
        slots = start + torch.arange(MOST_LENT_ALONG, device=self._device)
        self._cache.borrow_slots(
            slots,
            is_lent=slots < stop,
            lender=self._lender.target.cache,
            runs=self._lender.runs,
            spare_slot=self._runner.spare_slot,
        )

    def _extend(self, layout: PackedLayout, words: Tensor, *, num_tokens: int, span: int, has_noise: bool) -> Tensor:
        inputs, runner = layout.unpack(words), self._runner
        self._take_lent(inputs)
        num = len(inputs["start"])
        each = torch.arange(num, device=self._device)
        last = (inputs["count"] - 1).clamp(min=0)
        logits = runner.pass_logits(self._chain_grid(inputs), span=span, cells=(each, last))
        chosen: list[Tensor] = []
        for place in range(num_tokens):
            at = torch.full((num, 1), place, device=self._device)
            kept = self.chain_scores[:num, place : place + 1]
            token = self._choose(logits.unsqueeze(1), inputs, at, has_noise=has_noise, kept=kept)[:, 0]
            chosen.append(token)
            if place + 1 < num_tokens:
                position = inputs["start"] + inputs["count"] + place
                # A sequence with less room than others is drafted along, to no use.
                has_room = (inputs["count"] > 0) & (position < runner.capacity)
                row = PassGrid(
                    token_ids=token.clamp(min=0).unsqueeze(1),
                    positions=torch.where(has_room, position, 0).unsqueeze(1),
                    slots=torch.where(has_room, position, runner.spare_slot).unsqueeze(1),
                    lengths=torch.where(has_room, position + 1, 0),
                    listed=torch.zeros_like(position).unsqueeze(1),
                    visible=torch.zeros(num, 1, 1, dtype=torch.bool, device=self._device),
                    is_dense=True,
                    before=torch.where(has_room, position - 1, 0).unsqueeze(1),
                )
                logits = runner.pass_logits(row, span=span)[:, 0]
        return torch.stack(chosen, dim=1)

    def _prepare(
        self, layout: PackedLayout, words: Tensor, *, ranks: "_Ranks", depth: int, span: int, has_noise: bool
    ) -> Tensor:
        inputs, runner, num_outcomes = layout.unpack(words), self._runner, ranks.end - ranks.first
        self._take_lent(inputs)
        num, width = inputs["token_ids"].shape
        chain = self._chain_grid(inputs)
        logits = runner.chain_logits(chain, span=span)
        accepted, token = self._outcomes(logits, inputs, ranks=ranks, has_noise=has_noise)
        reached = accepted.clamp(min=0)

        branch = torch.arange(num_outcomes, device=self._device)
        # A branch sees the last decided token and all before it, the speculation as far as it is accepted, and itself.
        of_chain = chain.listed[:, 1:]
        sees_chain = torch.arange(1, width, device=self._device) <= reached.unsqueeze(2)
        sees_level = (branch == branch.unsqueeze(1)).expand(num, -1, -1)
        lengths = torch.where(inputs["count"] > 0, inputs["start"] + 1, 0)
        columns = [accepted, token]
        listed, visible = [of_chain], [sees_chain]
        before = inputs["start"].unsqueeze(1) + reached
        for level in range(depth):
            slots = (runner.capacity + level * num_outcomes + branch).expand(num, -1)
            listed.append(slots)
            visible.append(sees_level)
            row = PassGrid(
                token_ids=columns[-1].clamp(min=0),
                positions=inputs["start"].unsqueeze(1) + reached + 1 + level,
                slots=slots,
                lengths=lengths,
                listed=torch.cat(listed, dim=1),
                visible=torch.cat(visible, dim=2),
                before=before,
            )
            before = slots
            logits = runner.pass_logits(row, span=span)
            kept = self.tree_scores[:num, level * num_outcomes : (level + 1) * num_outcomes]
            columns.append(self._choose(logits, inputs, reached + 1 + level, has_noise=has_noise, kept=kept))
        return torch.stack(columns, dim=2)

    def _choose(
        self, logits_NRV: Tensor, inputs: dict[str, Tensor], places_NR: Tensor, *, has_noise: bool, kept: Tensor
    ) -> Tensor:
        """Return the token ``[N, R]`` of each row.

        Args:
            logits_NRV: Of the rows.
            inputs: Of the pass.
            places_NR: Of each row, its place among its sequence's keys or numbers.
            has_noise: Whether any sequence has a temperature.
            kept: Takes the laws that tokens are drawn from, ``[N, R, V]``.
        """
        width = places_NR.shape[1]
        temperatures = inputs["temperatures"].unsqueeze(1).expand(-1, width)
        truncation = Truncation.of(inputs)
        truncation = truncation and truncation.repeated(width)
        ids = self._runner.column_ids
        if not self._draws or not has_noise:
            keys = torch.zeros_like(places_NR) if self._draws else inputs["keys"].gather(1, places_NR)
            return select_tokens(logits_NRV, temperatures, keys, ids, has_noise=has_noise, truncation=truncation)
        scores = processed_scores(logits_NRV, temperatures, truncation)
        # What other sequences were given before stays theirs.
        kept.copy_(torch.where((inputs["count"] > 0)[:, None, None], scores, kept))
        return drawn_tokens(scores, temperatures, inputs["draws"].gather(1, places_NR), ids)

    def _outcomes(
        self, logits_NCV: Tensor, inputs: dict[str, Tensor], *, ranks: "_Ranks", has_noise: bool
    ) -> tuple[Tensor, Tensor]:
        """Return accepted tokens and token ``[N, B]`` of outcomes; -1 and an id where there are fewer.

        Args:
            logits_NCV: Of the chains.
            inputs: Of the pass.
            ranks: Which of them.
            has_noise: Whether any sequence has a temperature.
        """
        width, num_columns = logits_NCV.shape[1:]
        temperatures = inputs["temperatures"][:, None, None]
        is_greedy = temperatures == 0
        scores = logits_NCV / torch.where(is_greedy, 1.0, temperatures).float()
        values = scores
        if has_noise and not self._draws:
            noise = gumbel_noise(inputs["keys"][:, :width], self._runner.column_ids)
            values = scores + torch.where(is_greedy, 0.0, noise)
        is_near = scores >= scores.amax(dim=-1, keepdim=True) - REACH_NATS
        truncation = Truncation.of(inputs)
        if truncation is not None:
            is_near &= is_greedy | (scores >= truncation_cut(scores, truncation.repeated(width)))
        chances = torch.where(is_near, values, -torch.inf).log_softmax(dim=-1)
        best = chances.topk(min(ranks.num + 1, num_columns), dim=-1)

        rarest = torch.where(best.values.isfinite(), best.values, torch.inf).amin(dim=-1)
        drafted = inputs["drafted"]
        own = chances.gather(2, drafted.clamp(min=0).unsqueeze(2)).squeeze(2)
        of_drafted = torch.maximum(torch.where(drafted < 0, -torch.inf, own), rarest)
        before = of_drafted.cumsum(dim=1) - of_drafted

        place = torch.arange(width, device=self._device)
        last = (inputs["count"] - 1).unsqueeze(1)
        is_drafted = (best.indices == drafted.unsqueeze(2)) & (place < last).unsqueeze(2)
        is_possible = (place <= last).unsqueeze(2) & ~is_drafted
        joint = torch.where(is_possible, before.unsqueeze(2) + best.values, -torch.inf).flatten(1)
        likeliest = joint.topk(min(ranks.num, joint.shape[1]), dim=-1)
        each = best.values.shape[2]
        accepted = torch.where(likeliest.values.isfinite(), likeliest.indices // each, -1)
        token = self._runner.column_ids[best.indices.flatten(1).gather(1, likeliest.indices)]
        missing = ranks.num - joint.shape[1]
        if missing > 0:
            accepted = torch.nn.functional.pad(accepted, (0, missing), value=-1)
            token = torch.nn.functional.pad(token, (0, missing))
        return accepted[:, ranks.first : ranks.end], token[:, ranks.first : ranks.end]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ranks:
    """Some of the likeliest outcomes. Drafts with the same number of all agree, also where outcomes are equally likely.

    Attributes:
        num: B, of all.
        first: Place of the first of them.
        end: Place after the last.
    """

    num: int
    first: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainShape:
    """Sizes of chains laid out by sequence; a graph is recorded for each.

    Attributes:
        num_sequences: N.
        width: C.
        span: Slots that hold every prefix.
    """

    num_sequences: int
    width: int
    span: int
