"""Which requests hold a sequence of the cache, and what the target's next pass does. Pure Python, no model.

A request waits, then reads its prompt (in parts, so that a long one does not hold up the others), then decodes until
it leaves. One pass of the target is either a part of prompts or a round of everyone who decodes.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from forerun.core.errors import ConfigError
from forerun.engine.prefix_cache import BLOCK_TOKENS, PrefixCache, block_hashes, num_equal


class Schedulable(Protocol):
    """What the scheduler knows of a request.

    Attributes:
        index: No other request in the scheduler has the same.
        priority: Smaller goes first.
        sequence: Its sequence of the cache; -1 while it waits. Set by the scheduler.
        num_prefilled: Tokens, from its start, that its sequence holds before it decodes. Set by the scheduler.
    """

    index: int
    priority: int
    sequence: int
    num_prefilled: int

    @property
    def is_resumed(self) -> bool:
        """Whether it has decided tokens already, so that its prefill decides none."""
        ...

    def computed_tokens(self) -> Sequence[int]:
        """Return the tokens that its sequence holds while it decodes, at least one: all but the last decided one."""
        ...


RequestT = TypeVar("RequestT", bound=Schedulable)


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """Limits of what runs at a time.

    Attributes:
        max_num_seqs: Requests that hold a sequence of the cache.
        max_num_batched_tokens: Most tokens in one pass of the target.
        prefers_prefill: Whether every admitted prompt is read to its end before the next round; else parts and rounds
            take turns.
        reuses_prefixes: Whether a prompt's beginning is taken from a sequence that holds it.
        preempts: Whether a request of a smaller priority takes the sequence of one with a larger.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    prefers_prefill: bool = False
    reuses_prefixes: bool = False
    preempts: bool = False

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise ConfigError(f"max_num_seqs={self.max_num_seqs}: must be >= 1")
        if self.max_num_batched_tokens < 1:
            raise ConfigError(f"max_num_batched_tokens={self.max_num_batched_tokens}: must be >= 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixCopy:
    """Cached states to be copied before the pass.

    Attributes:
        source: Sequence that holds them.
        target: Sequence that gets them.
        num_tokens: How many, from the start.
    """

    source: int
    target: int
    num_tokens: int


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


def _no_copies() -> list[PrefixCopy]:
    return []


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan(Generic[RequestT]):
    """What to do next, in this order.

    Attributes:
        admitted: Requests that have got one.
        copies: States to copy.
        prefill: Parts for one pass; empty if the pass is a round.
        decode: Requests that take part in a round; empty if the pass is a prefill.
    """

    admitted: list[RequestT] = field(default_factory=list[RequestT])
    copies: list[PrefixCopy] = field(default_factory=_no_copies)
    prefill: list[PrefillPart[RequestT]] = field(default_factory=list[PrefillPart[RequestT]])
    decode: list[RequestT] = field(default_factory=list[RequestT])


class Scheduler(Generic[RequestT]):
    """Admits requests by priority, then by arrival, and shares passes among them.

    Args:
        config: The limits.
        on_release: Called with a request that is about to lose its sequence, because it leaves or has to wait again.
    """

    def __init__(self, config: SchedulerConfig, *, on_release: Callable[[RequestT], None]) -> None:
        self._config, self._on_release = config, on_release
        self._waiting: dict[int, RequestT] = {}
        self._running: dict[int, RequestT] = {}
        self._arrivals: dict[int, int] = {}
        self._num_arrivals = 0
        # Released sequences go to the end: the one that was left longest ago is the first to be overwritten.
        self._free = OrderedDict[int, None].fromkeys(range(config.max_num_seqs))
        self._prefixes = PrefixCache()
        self._hashes: dict[int, list[bytes]] = {}
        self._prefill_ends: dict[int, int] = {}
        self._prefilled_last = False

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def running(self) -> list[RequestT]:
        """Requests that hold a sequence, in the order they got it."""
        return list(self._running.values())

    @property
    def num_waiting(self) -> int:
        """Requests without a sequence."""
        return len(self._waiting)

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

    def remove(self, request: RequestT) -> None:
        """Let a request go, wherever it stands; its sequence is free at once, and what it computed can be reused."""
        if request.index in self._running:
            self._release(request)
        else:
            del self._waiting[request.index]
        self._hashes.pop(request.index, None)
        del self._arrivals[request.index]

    def plan(self) -> Plan[RequestT]:
        """Admit who can be, and choose the next pass.

        Effects:
            Sets ``sequence`` and ``num_prefilled`` of the requests as if the plan had been carried out.
        """
        plan: Plan[RequestT] = Plan()
        self._admit(plan)
        prefilling = [request for request in self._running.values() if not self._is_decoding(request)]
        decoding = [request for request in self._running.values() if self._is_decoding(request)]
        takes_turn = self._config.prefers_prefill or not (self._prefilled_last and decoding)
        self._prefilled_last = bool(prefilling) and takes_turn
        if self._prefilled_last:
            self._share_pass(sorted(prefilling, key=self._rank), plan)
        else:
            plan.decode.extend(decoding)
        return plan

    def check_integrity(self) -> None:
        """Assert that every sequence is free or held once, and every request waits or runs."""
        held = [request.sequence for request in self._running.values()]
        assert sorted([*held, *self._free]) == list(range(self._config.max_num_seqs)), f"held {held}, free {self._free}"
        assert all(request.sequence == -1 for request in self._waiting.values()), "a waiting request has a sequence"
        assert self._arrivals.keys() == self._waiting.keys() | self._running.keys(), "a request is lost"
        assert not self._waiting.keys() & self._running.keys(), "a request waits and runs"
        assert self._prefill_ends.keys() == self._running.keys(), "a running request's prefill has no end"
        assert self._hashes.keys() == (self._arrivals.keys() if self._config.reuses_prefixes else set())
        self._prefixes.check_integrity()

    def _rank(self, request: RequestT) -> tuple[int, int]:
        return request.priority, self._arrivals[request.index]

    def _is_decoding(self, request: RequestT) -> bool:
        return request.num_prefilled == self._prefill_ends[request.index]

    def _wait(self, request: RequestT) -> None:
        self._waiting[request.index] = request
        if self._config.reuses_prefixes:
            self._hashes[request.index] = block_hashes(request.computed_tokens())

    def _admit(self, plan: Plan[RequestT]) -> None:
        limit = min(self._config.max_num_seqs, self._config.max_num_batched_tokens)
        for request in sorted(self._waiting.values(), key=self._rank):
            if self._awaits_prefix(request):
                continue
            if len(self._running) >= limit and not self._preempt_for(request):
                return
            del self._waiting[request.index]
            self._place(request, plan)
            self._running[request.index] = request
            plan.admitted.append(request)

    def _preempt_for(self, request: RequestT) -> bool:
        """Take the sequence of the running request that ranks last, if this one's priority is before its."""
        last = max(self._running.values(), key=self._rank)
        if not self._config.preempts or request.priority >= last.priority:
            return False
        self._release(last)
        self._wait(last)
        return True

    def _usable(self, request: RequestT) -> list[bytes]:
        """Return the blocks that need not be computed: a prompt's last token must run, as what follows is decided."""
        hashes = self._hashes[request.index]
        if request.is_resumed:
            return hashes
        return hashes[: (len(request.computed_tokens()) - 1) // BLOCK_TOKENS]

    def _awaits_prefix(self, request: RequestT) -> bool:
        """Return whether a request of the same beginning is just computing what this one could take over."""
        if not self._config.reuses_prefixes:
            return False
        usable = self._usable(request)
        num_held = self._prefixes.longest(usable)[1]
        return any(
            BLOCK_TOKENS * num_equal(self._hashes[index], usable) > num_held
            for index, other in self._running.items()
            if not self._is_decoding(other)
        )

    def _place(self, request: RequestT, plan: Plan[RequestT]) -> None:
        """Give a request the free sequence that holds most of its text, or copy a longer beginning from another."""
        self._prefill_ends[request.index] = len(request.computed_tokens())
        if not self._config.reuses_prefixes:
            request.sequence, _ = self._free.popitem(last=False)
            return
        usable = self._usable(request)
        source, num_tokens = self._prefixes.longest(usable)
        best = max(self._free, key=lambda sequence: self._prefixes.num_held_tokens(sequence, usable))
        is_held = self._prefixes.num_held_tokens(best, usable) == num_tokens > 0
        request.sequence = best if is_held else next(iter(self._free))
        del self._free[request.sequence]
        if num_tokens > 0 and not is_held:
            plan.copies.append(PrefixCopy(source=source, target=request.sequence, num_tokens=num_tokens))
        request.num_prefilled = num_tokens
        self._prefixes.hold(request.sequence, usable[: num_tokens // BLOCK_TOKENS])

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
            if self._config.reuses_prefixes:
                self._prefixes.hold(request.sequence, self._hashes[request.index][: stop // BLOCK_TOKENS])

    def _release(self, request: RequestT) -> None:
        """Take a running request's sequence; its whole blocks stay known until they are overwritten."""
        self._on_release(request)
        if self._config.reuses_prefixes and self._is_decoding(request):
            self._prefixes.hold(request.sequence, block_hashes(request.computed_tokens()))
        del self._running[request.index], self._prefill_ends[request.index]
        self._free[request.sequence] = None
        request.sequence, request.num_prefilled = -1, 0
