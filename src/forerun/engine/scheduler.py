"""Which requests hold blocks of the cache, and what the target's next pass does. Pure Python, no model.

A request waits, then reads its prompt (in parts, so that a long one does not hold up the others), then decodes until
it leaves. One pass of the target is either a part of prompts or a round of everyone who decodes. A request gets the
blocks of its text when it is admitted and one more when it has filled them; where none is free, the request that ranks
last is put aside. It comes back with the same tokens, and computes again what was forgotten meanwhile.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from forerun.core.errors import ConfigError
from forerun.engine.block_pool import BlockPool, block_hashes
from forerun.engine.placement import PagePlacement, Placement, RowCopy


class Schedulable(Protocol):
    """What the scheduler knows of a request.

    Attributes:
        index: No other request in the scheduler has the same.
        priority: Smaller goes first.
        cache_salt: Its blocks are shared with requests of the same salt only.
        sequence: Its sequence of the cache; -1 while it waits. Set by the scheduler.
        num_prefilled: Tokens, from its start, that its blocks hold before it decodes. Set by the scheduler.
    """

    index: int
    priority: int
    cache_salt: str
    sequence: int
    num_prefilled: int

    @property
    def is_resumed(self) -> bool:
        """Whether it has decided tokens already, so that its prefill decides none."""
        ...

    @property
    def num_computed_tokens(self) -> int:
        """How many tokens :meth:`computed_tokens` returns, once a token is decided."""
        ...

    def computed_tokens(self) -> Sequence[int]:
        """Return the tokens that its blocks hold while it decodes, at least one: all but the last decided one."""
        ...


RequestT = TypeVar("RequestT", bound=Schedulable)


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """Limits of what runs at a time.

    Attributes:
        max_num_seqs: Requests that hold blocks of the cache.
        max_num_batched_tokens: Most tokens in one pass of the target.
        max_cached_tokens: Tokens whose keys and values are kept, prefixes without a request included; ``None``: as many
            as the cache holds.
        prefers_prefill: Whether every admitted prompt is read to its end before the next round; else parts and rounds
            take turns.
        reuses_prefixes: Whether a prompt's beginning is taken from blocks that hold it.
        preempts: Whether a request of a smaller priority takes the place of one with a larger. (For want of blocks,
            requests are put aside in any case.)
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_cached_tokens: int | None = None
    prefers_prefill: bool = False
    reuses_prefixes: bool = False
    preempts: bool = False

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise ConfigError(f"max_num_seqs={self.max_num_seqs}: must be >= 1")
        if self.max_num_batched_tokens < 1:
            raise ConfigError(f"max_num_batched_tokens={self.max_num_batched_tokens}: must be >= 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillPart(Generic[RequestT]):
    """A part of what a request has to read before it decodes.

    Attributes:
        request: The request.
        start: First token.
        stop: Token after the last.
        decides: Whether the request's first token follows.
    """

    request: RequestT
    start: int
    stop: int
    decides: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan(Generic[RequestT]):
    """What to do next, in this order, once :meth:`Scheduler.take_tables` is carried out.

    Attributes:
        copies: Blocks to be copied.
        admitted: Requests that have got blocks.
        prefill: Parts for one pass; empty if the pass is a round.
        decode: Requests that take part in a round; empty if the pass is a prefill.
    """

    copies: list[RowCopy] = field(default_factory=list[RowCopy])
    admitted: list[RequestT] = field(default_factory=list[RequestT])
    prefill: list[PrefillPart[RequestT]] = field(default_factory=list[PrefillPart[RequestT]])
    decode: list[RequestT] = field(default_factory=list[RequestT])


class Scheduler(Generic[RequestT]):
    """Admits requests by priority, then by arrival, and shares blocks and passes among them.

    Args:
        config: The limits.
        num_blocks: Blocks of the cache; they hold the longest request there can be, by itself.
        block_tokens: Tokens per block.
        on_release: Called with a request that is about to lose its blocks, because it leaves or has to wait again.
        placement: Where blocks lie; by default wherever the model's block tables say.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        num_blocks: int,
        block_tokens: int,
        on_release: Callable[[RequestT], None],
        placement: Placement | None = None,
    ) -> None:
        self._placement = placement or PagePlacement()
        self._config, self._block_tokens, self._on_release = config, block_tokens, on_release
        self._waiting: dict[int, RequestT] = {}
        self._running: dict[int, RequestT] = {}
        self._arrivals: dict[int, int] = {}
        self._num_arrivals = 0
        self._pool = BlockPool(num_blocks)
        self._blocks: dict[int, list[int]] = {}
        self._changed: dict[int, RequestT] = {}
        # Rows that are left go to the end: the one that was left longest ago is the first to be given away.
        self._free_rows = list(range(config.max_num_seqs))
        self._hashes: dict[int, list[bytes]] = {}
        self._prefill_ends: dict[int, int] = {}
        self._prefilled_last = False
        self._most_running = config.max_num_seqs
        self.num_preempted = 0

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def running(self) -> list[RequestT]:
        """Requests that hold blocks, in the order they got them."""
        return list(self._running.values())

    @property
    def num_waiting(self) -> int:
        """Requests without blocks."""
        return len(self._waiting)

    @property
    def cache_usage(self) -> float:
        """Share of the blocks that running requests hold; what several share counts once."""
        return self._pool.usage

    @property
    def max_num_batched_tokens(self) -> int:
        """Most tokens in one pass."""
        return self._config.max_num_batched_tokens

    def add(self, request: RequestT) -> None:
        """Let a request wait for its turn."""
        assert request.index not in self._arrivals, f"request {request.index} is there already"
        self._arrivals[request.index] = self._num_arrivals
        self._num_arrivals += 1
        self._wait(request)

    def remove(self, request: RequestT, *, is_sound: bool = True) -> None:
        """Let a request go, wherever it stands; its blocks are free at once.

        Args:
            request: The request.
            is_sound: Whether what it computed, and what it took over from others, can be reused.
        """
        if request.index in self._running:
            blocks = self._blocks[request.index]
            self._release(request)
            if not is_sound:
                self._pool.forget(blocks)
        else:
            del self._waiting[request.index]
        self._hashes.pop(request.index, None)
        del self._arrivals[request.index]

    def plan(self) -> Plan[RequestT]:
        """Give those who decode room for the next token, admit who can be, and choose the next pass.

        Effects:
            Sets ``sequence`` and ``num_prefilled`` of the requests as if the plan had been carried out.
        """
        plan: Plan[RequestT] = Plan()
        self._grow()
        self._admit(plan)
        plan.copies.extend(self._placement.take_copies())
        prefilling = [request for request in self._running.values() if not self._is_decoding(request)]
        decoding = [request for request in self._running.values() if self._is_decoding(request)]
        takes_turn = self._config.prefers_prefill or not (self._prefilled_last and decoding)
        self._prefilled_last = bool(prefilling) and takes_turn
        if self._prefilled_last:
            self._share_pass(sorted(prefilling, key=self._rank), plan)
        else:
            plan.decode.extend(decoding)
        return plan

    def reserve(self, request: RequestT, num_tokens: int) -> int:
        """Give a running request blocks for so many tokens, as far as some are free.

        Returns:
            Tokens that its blocks hold, at most what was asked for.
        """
        blocks = self._blocks[request.index]
        num_missing = min(self._num_blocks_for(num_tokens) - len(blocks), self._pool.num_free)
        if num_missing > 0:
            taken = self._pool.take(num_missing)
            blocks += taken
            self._placement.extend(request.sequence, taken)
            self._changed[request.index] = request
        return min(num_tokens, len(blocks) * self._block_tokens)

    def shrink(self, unread: Iterable[RequestT]) -> bool:
        """Put everyone who runs aside, and let one fewer run from now on, for want of memory.

        Args:
            unread: Those whose parts of the last plan were not carried out: what their blocks hold is not known.

        Returns:
            Whether that could be: not where one alone runs.
        """
        if len(self._running) < 2:
            return False
        self._most_running = len(self._running) - 1
        blocks = [block for request in unread for block in self._blocks[request.index]]
        for request in list(self._running.values()):
            if not set(blocks).isdisjoint(self._blocks[request.index]):
                request.num_prefilled = 0
            self._put_aside(request)
        self._pool.forget(dict.fromkeys(blocks))
        return True

    def take_tables(self) -> Sequence[tuple[int, Sequence[int]]]:
        """Return the block tables that have changed since the last call: each a row and its blocks, in order."""
        tables = [(request.sequence, self._blocks[index]) for index, request in self._changed.items()]
        self._changed.clear()
        return tables

    def check_integrity(self) -> None:
        """Assert that every block and row is free or accounted for, and every request waits or runs."""
        held = [request.sequence for request in self._running.values()]
        assert sorted([*held, *self._free_rows]) == list(range(self._config.max_num_seqs)), f"rows held: {held}"
        assert all(request.sequence == -1 for request in self._waiting.values()), "a waiting request has a row"
        assert self._arrivals.keys() == self._waiting.keys() | self._running.keys(), "a request is lost"
        assert not self._waiting.keys() & self._running.keys(), "a request waits and runs"
        assert self._prefill_ends.keys() == self._running.keys(), "a running request's prefill has no end"
        assert self._blocks.keys() == self._running.keys(), "blocks are held by one who does not run"
        assert self._changed.keys() <= self._running.keys(), "a table of one who does not run"
        assert self._hashes.keys() == (self._arrivals.keys() if self._config.reuses_prefixes else set())
        self._pool.check_integrity(self._blocks.values())

    def _rank(self, request: RequestT) -> tuple[int, int]:
        return request.priority, self._arrivals[request.index]

    def _is_decoding(self, request: RequestT) -> bool:
        return request.num_prefilled == self._prefill_ends[request.index]

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_tokens)

    def _wait(self, request: RequestT) -> None:
        self._waiting[request.index] = request
        if self._config.reuses_prefixes:
            self._hashes[request.index] = self._block_hashes(request)

    def _block_hashes(self, request: RequestT) -> list[bytes]:
        return block_hashes(request.computed_tokens(), block_tokens=self._block_tokens, salt=request.cache_salt)

    def _grow(self) -> None:
        """Give everyone who decodes a slot for the token to run next, from those who rank last if need be."""
        for request in sorted(self._running.values(), key=self._rank):
            if request.index not in self._running or not self._is_decoding(request):
                continue
            num_tokens = request.num_computed_tokens + 1
            while request.index in self._running and self.reserve(request, num_tokens) < num_tokens:
                self._put_aside(max(self._running.values(), key=self._rank))

    def _put_aside(self, request: RequestT) -> None:
        self._release(request)
        self._wait(request)
        self.num_preempted += 1

    def _admit(self, plan: Plan[RequestT]) -> None:
        limit = min(self._most_running, self._config.max_num_batched_tokens)
        for request in sorted(self._waiting.values(), key=self._rank):
            if self._awaits_prefix(request):
                continue
            victims = self._victims(request, limit)
            if victims is None:
                return
            for victim in victims:
                self._put_aside(victim)
            del self._waiting[request.index]
            self._place(request)
            self._running[request.index] = request
            plan.admitted.append(request)

    def _victims(self, request: RequestT, limit: int) -> list[RequestT] | None:
        """Return who is to be put aside so that a request can run; ``None``: it has to wait.

        A block for each who runs is left free: whoever is admitted must not be put aside by the next round.
        """
        found = self._pool.find(self._usable(request))
        num_new = self._num_blocks_for(len(request.computed_tokens()) + 1) - len(found)
        num_free, num_running = self._pool.num_free - self._pool.num_free_among(found), len(self._running)
        ranked = sorted(self._running.values(), key=self._rank)
        victims: list[RequestT] = []
        while num_running >= limit or num_new + num_running > num_free:
            last = ranked.pop() if ranked else None
            if last is None or not self._config.preempts or request.priority >= last.priority:
                return None
            victims.append(last)
            num_running -= 1
            kept = set(found)
            num_free += self._pool.num_freed_by(block for block in self._blocks[last.index] if block not in kept)
        return victims

    def _usable(self, request: RequestT) -> list[bytes]:
        """Return the blocks that need not be computed: a prompt's last token must run, as what follows is decided."""
        if not self._config.reuses_prefixes:
            return []
        hashes = self._hashes[request.index]
        if request.is_resumed:
            return hashes
        return hashes[: (len(request.computed_tokens()) - 1) // self._block_tokens]

    def _awaits_prefix(self, request: RequestT) -> bool:
        """Return whether a request of the same beginning is just computing what this one could take over."""
        usable = self._usable(request)
        num_held = len(self._pool.find(usable))
        return any(
            _num_equal(self._hashes[index], usable) > num_held
            for index, other in self._running.items()
            if usable and not self._is_decoding(other)
        )

    def _place(self, request: RequestT) -> None:
        """Give a request a row, the blocks that hold its beginning, and new ones for the rest and one more token."""
        num_tokens = len(request.computed_tokens())
        found = self._pool.find(self._usable(request))
        self._pool.share(found)
        blocks = [*found, *self._pool.take(self._num_blocks_for(num_tokens + 1) - len(found))]
        self._blocks[request.index], self._prefill_ends[request.index] = blocks, num_tokens
        self._changed[request.index] = request
        row = self._placement.choose(self._free_rows, found)
        self._free_rows.remove(row)
        self._pool.forget(self._placement.place(row, blocks, num_found=len(found)))
        request.sequence, request.num_prefilled = row, len(found) * self._block_tokens

    def _share_pass(self, prefilling: Sequence[RequestT], plan: Plan[RequestT]) -> None:
        left = self._config.max_num_batched_tokens
        for request in prefilling:
            start, end = request.num_prefilled, self._prefill_ends[request.index]
            stop = min(end, start + left)
            if stop == start:
                return
            left -= stop - start
            request.num_prefilled = stop
            decides = stop == end and not request.is_resumed
            plan.prefill.append(PrefillPart(request=request, start=start, stop=stop, decides=decides))
            self._publish(request, self._hashes.get(request.index, []), num_tokens=stop)

    def _publish(self, request: RequestT, hashes: Sequence[bytes], *, num_tokens: int) -> None:
        """Let others find the whole blocks of what a request has computed."""
        num_whole = min(num_tokens // self._block_tokens, len(hashes))
        self._pool.publish(self._blocks[request.index][:num_whole], hashes[:num_whole])

    def _release(self, request: RequestT) -> None:
        """Take a running request's blocks; the whole ones stay known until they are taken for another text."""
        self._on_release(request)
        if self._config.reuses_prefixes and self._is_decoding(request):
            self._publish(request, self._block_hashes(request), num_tokens=request.num_computed_tokens)
        self._pool.release(self._blocks.pop(request.index))
        del self._running[request.index], self._prefill_ends[request.index]
        self._changed.pop(request.index, None)
        self._free_rows.append(request.sequence)
        request.sequence, request.num_prefilled = -1, 0


def _num_equal(some: Sequence[bytes], others: Sequence[bytes]) -> int:
    """Return the length of the common beginning."""
    for index, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return index
    return min(len(some), len(others))
