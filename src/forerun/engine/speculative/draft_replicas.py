"""One draft model on several devices: each prepares for a part of the outcomes, so more are prepared in the same time.

Every device reads every request, ranks the outcomes of its verification by the same law, and drafts after those that
are its own. A chain is one device's work: sequences have homes. Devices that round differently may rank two outcomes
the other way round: then one of the two is prepared twice or not at all, and no token is another for that.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

from forerun.core.protocols import Pending
from forerun.engine.law import ProcessedLaw
from forerun.engine.request import Request
from forerun.engine.speculative.device_draft import DeviceDraft
from forerun.engine.speculative.draft_round import RoundModel
from forerun.engine.speculative.speculator import LawPlace, Speculation

_T = TypeVar("_T")


class DraftReplicas:
    """A draft for :mod:`forerun.engine.speculative.device_drafter`, spread over devices.

    Args:
        drafts: The same model on each device, at least one; all hand laws over to the same place, or none does.
    """

    def __init__(self, drafts: Sequence[DeviceDraft]) -> None:
        self._drafts = tuple(drafts)

    @property
    def runners(self) -> tuple[RoundModel, ...]:
        """The draft model, on each device."""
        return tuple(draft.runner for draft in self._drafts)

    @property
    def reads_prompts(self) -> bool:
        """As :attr:`DeviceDraft.reads_prompts`."""
        return self._drafts[0].reads_prompts

    @property
    def laws_at(self) -> LawPlace:
        """As :attr:`DeviceDraft.laws_at`."""
        return self._drafts[0].laws_at

    def start(self, request: Request, *, is_ahead: bool) -> None:
        """As :meth:`DeviceDraft.start`, on each device."""
        for place, draft in enumerate(self._drafts):
            draft.start(request, is_ahead=is_ahead, is_home=request.sequence % len(self._drafts) == place)

    def begin_round(self) -> None:
        """As :meth:`DeviceDraft.begin_round`, on each device."""
        for draft in self._drafts:
            draft.begin_round()

    def forget(self, request: Request) -> None:
        """As :meth:`DeviceDraft.forget`."""
        for draft in self._drafts:
            draft.forget(request)

    def extend(self, requests: Sequence[Request], *, num_tokens: int) -> Pending:
        """As :meth:`DeviceDraft.extend`, each request on its own device."""
        parts = self._by_home({request.sequence: request for request in requests})
        return _Rows([(draft.extend([*own.values()], num_tokens=num_tokens), [*own]) for draft, own in parts])

    def prepare(
        self, requests: Sequence[Request], speculations: Sequence[Sequence[int]], *, num_outcomes: int, depth: int
    ) -> Pending:
        """As :meth:`DeviceDraft.prepare`, all devices side by side, the likeliest outcomes on the first."""
        return _Columns(
            [
                draft.prepare(requests, speculations, num_outcomes=num_outcomes, depth=depth, part=(first, stop))
                for draft, first, stop in self._parts(num_outcomes)
            ]
        )

    def hand_over_chains(self, drafts: Mapping[int, int]) -> None:
        """As :meth:`DeviceDraft.hand_over_chains`."""
        for draft, own in self._by_home(drafts):
            draft.hand_over_chains(own)

    def hand_over_branches(self, drafts: Mapping[int, tuple[int, int]], *, num_outcomes: int) -> None:
        """As :meth:`DeviceDraft.hand_over_branches`."""
        for draft, first, stop in self._parts(num_outcomes):
            own = {
                sequence: (branch - first, count)
                for sequence, (branch, count) in drafts.items()
                if first <= branch < stop
            }
            if own:
                draft.hand_over_branches(own, num_outcomes=stop - first)

    def laws(self, request: Request, speculation: Speculation) -> list[ProcessedLaw | None]:
        """As :meth:`DeviceDraft.laws`."""
        return self._drafts[0].laws(request, speculation)

    def roll_back(self, request: Request) -> None:
        """As :meth:`DeviceDraft.roll_back`."""
        for draft in self._drafts:
            draft.roll_back(request)

    def _by_home(self, of_sequences: Mapping[int, _T]) -> Iterator[tuple[DeviceDraft, dict[int, _T]]]:
        """Yield drafts, each with what belongs to the sequences whose chains it extends."""
        for place, draft in enumerate(self._drafts):
            own = {sequence: one for sequence, one in of_sequences.items() if sequence % len(self._drafts) == place}
            if own:
                yield draft, own

    def _parts(self, num_outcomes: int) -> Iterator[tuple[DeviceDraft, int, int]]:
        """Yield drafts with the first of the outcomes that each prepares for, and the end of them."""
        num = len(self._drafts)
        ends = [num_outcomes * place // num for place in range(num + 1)]
        for draft, (first, stop) in zip(self._drafts, pairwise(ends), strict=True):
            if stop > first:
                yield draft, first, stop


RoundDraft = DeviceDraft | DraftReplicas
"""What drafts in rounds of one launch, on one device or on several."""


class _Rows:
    """Results of several launches, each for some of the sequences."""

    def __init__(self, parts: Sequence[tuple[Pending, list[int]]]) -> None:
        self._parts = parts

    def result(self) -> np.ndarray:
        """Return a row for each sequence up to the last, by sequence; those of no launch are -1."""
        found = [(part.result()[sequences], sequences) for part, sequences in self._parts]
        num = 1 + max(max(sequences) for _, sequences in found)
        joined = np.full((num, *found[0][0].shape[1:]), -1, found[0][0].dtype)
        for rows, sequences in found:
            joined[sequences] = rows
        return joined


class _Columns:
    """Results of several launches, each for all sequences and some of the outcomes."""

    def __init__(self, parts: Sequence[Pending]) -> None:
        self._parts = parts
        self._joined: np.ndarray | None = None

    def result(self) -> np.ndarray:
        """Return the outcomes of all, those of the first launch first; every request of a round asks."""
        if self._joined is None:
            self._joined = np.concatenate([part.result() for part in self._parts], axis=1)
        return self._joined
