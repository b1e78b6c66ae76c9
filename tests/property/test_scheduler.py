"""The scheduler in any course of events: nobody is lost, no block has two texts, and the cache holds what it says.

A twin of the cache is kept token by token: each plan is carried out on it, and a request that decodes must find its own
text there, whatever was shared, copied, evicted, preempted or cut off before. One twin reads block tables, the other
has a row of slots per sequence.
"""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forerun.core.errors import ConfigError
from forerun.engine.placement import RowPlacement
from forerun.engine.scheduler import Scheduler, SchedulerConfig

BLOCK_TOKENS = 16
GARBAGE = -7


@dataclass(eq=False)
class Job:
    index: int
    prompt: list[int]
    priority: int = 0
    cache_salt: str = ""
    sequence: int = -1
    num_prefilled: int = 0
    output: list[int] = field(default_factory=list)

    @property
    def is_resumed(self):
        return bool(self.output)

    @property
    def num_computed_tokens(self):
        return len(self.prompt) + len(self.output) - 1

    def computed_tokens(self):
        return [*self.prompt, *self.output[:-1]]


class PagedTwin:
    """Tokens by block; a table for each sequence."""

    placement = None

    def __init__(self, *, num_seqs, num_blocks, block_tokens):
        self.block_tokens = block_tokens
        self.blocks = [[None] * block_tokens for _ in range(num_blocks)]
        self.tables = [[] for _ in range(num_seqs)]

    def set_tables(self, tables):
        for sequence, blocks in tables:
            self.tables[sequence] = list(blocks)

    def write(self, sequence, start, tokens):
        for slot, token in enumerate(tokens, start):
            self.blocks[self.tables[sequence][slot // self.block_tokens]][slot % self.block_tokens] = token

    def read(self, sequence, num_tokens):
        held = [token for block in self.tables[sequence] for token in self.blocks[block]]
        return held[:num_tokens]

    def copy(self, copy):
        raise AssertionError("blocks are shared, not copied")


class RowTwin:
    """Tokens by sequence."""

    def __init__(self, *, num_seqs, num_blocks, block_tokens):
        self.block_tokens, self.placement = block_tokens, RowPlacement(num_seqs)
        self.rows = [[None] * num_blocks * block_tokens for _ in range(num_seqs)]

    def set_tables(self, tables):
        """There are none."""

    def write(self, sequence, start, tokens):
        self.rows[sequence][start : start + len(tokens)] = tokens

    def read(self, sequence, num_tokens):
        return self.rows[sequence][:num_tokens]

    def copy(self, copy):
        assert copy.source != copy.target
        part = slice(copy.first * self.block_tokens, copy.last * self.block_tokens)
        self.rows[copy.target][part] = self.rows[copy.source][part]


class Setting:
    """A scheduler with the twin of its cache."""

    def __init__(self, *, num_blocks=30, block_tokens=BLOCK_TOKENS, twin=PagedTwin, draft=2, **options):
        self.released, self.draft = [], draft
        self.config = SchedulerConfig(**options)
        num_seqs = self.config.max_num_seqs
        self.twin = twin(num_seqs=num_seqs, num_blocks=num_blocks, block_tokens=block_tokens)
        self.scheduler = Scheduler[Job](
            self.config,
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            on_release=self.released.append,
            placement=self.twin.placement,
        )

    def step(self):
        """Plan a pass and do to the twin what the engine does to the target's cache."""
        plan = self.scheduler.plan()
        for copy in plan.copies:
            self.twin.copy(copy)
        self.twin.set_tables(self.scheduler.take_tables())
        assert sum(part.stop - part.start for part in plan.prefill) <= self.config.max_num_batched_tokens
        assert not (plan.prefill and plan.decode)
        for part in plan.prefill:
            job = part.request
            self.twin.write(job.sequence, part.start, job.computed_tokens()[part.start : part.stop])
            if part.decides:
                assert job.output == []
                job.output.append(job.index)
        for job in plan.decode:
            self._decode(job)
        return plan

    def _decode(self, job):
        """Decide the next token, and one of a draft if there is room for a draft; rejected rows leave garbage."""
        tokens = job.computed_tokens()
        assert self.twin.read(job.sequence, len(tokens)) == tokens, "a request does not find its own text"
        num_slots = self.scheduler.reserve(job, len(tokens) + 1 + self.draft)
        assert num_slots > len(tokens), "no room for the token that is run"
        self.twin.set_tables(self.scheduler.take_tables())
        self.twin.write(job.sequence, len(tokens), [GARBAGE] * (num_slots - len(tokens)))
        job.output += [job.index, len(job.output)][: num_slots - len(tokens)]
        decided = job.computed_tokens()[len(tokens) :]
        self.twin.write(job.sequence, len(tokens), decided)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_seqs=st.integers(1, 3),
        budget=st.integers(1, 40),
        prefers_prefill=st.booleans(),
        reuses=st.booleans(),
        preempts=st.booleans(),
        num_spare=st.sampled_from([0, 1, 4, 60]),
        twin=st.sampled_from([PagedTwin, RowTwin]),
    )
    def begin(self, num_seqs, budget, prefers_prefill, reuses, preempts, num_spare, twin):
        self.setting = Setting(
            num_blocks=_MOST_BLOCKS + num_spare,
            block_tokens=4,
            twin=twin,
            max_num_seqs=num_seqs,
            max_num_batched_tokens=budget,
            prefers_prefill=prefers_prefill,
            reuses_prefixes=reuses,
            preempts=preempts,
        )
        self.scheduler, self.config = self.setting.scheduler, self.setting.config
        self.jobs = {}
        self.num_jobs = 0

    @rule(
        stem=st.integers(0, 2),
        shared=st.sampled_from([0, 5, 8, 16, 19]),
        own=st.integers(1, 12),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "a"]),
    )
    def add(self, stem, shared, own, priority, salt):
        job = Job(self.num_jobs, [stem] * shared + [100 + self.num_jobs] * own, priority, salt)
        self.num_jobs += 1
        self.jobs[job.index] = job
        self.scheduler.add(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def leave(self, data):
        job = data.draw(st.sampled_from(sorted(self.jobs.values(), key=lambda job: job.index)))
        held_one = job.sequence >= 0
        num_released = len(self.setting.released)
        self._remove(job)
        assert len(self.setting.released) - num_released == held_one
        assert job.sequence == -1

    @rule(times=st.integers(1, 4))
    def step(self, times):
        for _ in range(times):
            first = min(self.jobs.values(), key=lambda job: (job.priority, job.index), default=None)
            plan = self._step()
            running = self.scheduler.running
            assert len(running) <= min(self.config.max_num_seqs, self.config.max_num_batched_tokens)
            if first is not None and first.index in self.jobs and self.config.preempts:
                assert first in running or not plan.decode, "the first of all waits while others decode"

    @invariant()
    def is_sound(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert self.scheduler.has_work == bool(self.jobs)

    def _remove(self, job):
        self.scheduler.remove(job)
        del self.jobs[job.index]

    def _step(self):
        """One pass; those who are done leave, so that nobody grows beyond the blocks there are."""
        plan = self.setting.step()
        assert bool(plan.prefill or plan.decode) == bool(self.jobs), "work, and nothing is done"
        for job in [job for job in self.jobs.values() if len(job.output) > 10]:
            self._remove(job)
        return plan

    def teardown(self):
        """Everyone who stays gets to decode in the end: nobody is starved by the others' number."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(4000):
            if not self.jobs:
                break
            self._step()
        assert not self.jobs, "some never got their turn"
        self.scheduler.check_integrity()


_MOST_BLOCKS = 12
"""Of four tokens: enough for the longest job with its output and a draft."""
TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_long_prompt_does_not_hold_up_those_who_decode():
    some = Setting(max_num_seqs=2, max_num_batched_tokens=8)
    first, long = Job(0, [1, 2]), Job(1, [3] * 80)
    some.scheduler.add(first)
    some.step()
    some.scheduler.add(long)
    kinds = []
    while not long.output:
        kinds.append("round" if some.step().decode else "part")
    assert kinds == ["round", "part"] * 10


@pytest.mark.parametrize("twin", [PagedTwin, RowTwin])
def test_a_prompt_that_is_cached_runs_its_last_token_only(twin):
    """Also where the prompt is a whole number of blocks: what follows its last token has to be decided."""
    some = Setting(max_num_seqs=2, max_num_batched_tokens=64, reuses_prefixes=True, twin=twin)
    prompt = list(range(2 * BLOCK_TOKENS))
    for index in range(2):
        job = Job(index, prompt)
        some.scheduler.add(job)
        plan = some.step()
        assert [(part.start, part.stop) for part in plan.prefill] == [((0, 32), (16, 32))[index]]
        some.scheduler.remove(job)


@pytest.mark.parametrize("twin", [PagedTwin, RowTwin])
def test_what_is_not_sound_is_found_by_nobody(twin):
    setting = Setting(twin=twin, max_num_seqs=2, max_num_batched_tokens=100, reuses_prefixes=True)
    scheduler, prompt = setting.scheduler, list(range(3 * BLOCK_TOKENS))
    jobs = [Job(index, [*prompt, index]) for index in range(4)]
    for job, is_sound, num_run in zip(jobs, (True, False, True, True), (49, 1, 49, 1), strict=True):
        scheduler.add(job)
        (part,) = setting.step().prefill
        assert part.stop - part.start == num_run
        scheduler.remove(job, is_sound=is_sound)
        scheduler.check_integrity()


def test_a_prompt_is_shared_within_its_salt_only():
    some = Setting(max_num_seqs=1, max_num_batched_tokens=64, reuses_prefixes=True)

    def first_start(index, salt):
        job = Job(index, [1] * (BLOCK_TOKENS + 1), cache_salt=salt)
        some.scheduler.add(job)
        (part,) = some.step().prefill
        some.scheduler.remove(job)
        return part.start

    starts = [first_start(index, salt) for index, salt in enumerate(["", "a", "b", "", "a", "b"])]
    assert starts == [0, 0, 0, BLOCK_TOKENS, BLOCK_TOKENS, BLOCK_TOKENS]


@pytest.mark.parametrize(("twin", "num_copies"), [(PagedTwin, 0), (RowTwin, 2)])
def test_a_running_request_lends_its_prefix_and_twins_wait_for_it(twin, num_copies):
    some = Setting(max_num_seqs=3, max_num_batched_tokens=64, reuses_prefixes=True, twin=twin)
    for index in range(3):
        some.scheduler.add(Job(index, [5] * 40))
    first = some.step()
    assert [part.request.index for part in first.prefill] == [0]
    second = some.step()
    third = some.step()
    assert [request.index for request in second.decode] == [0]
    assert [(copy.first, copy.last) for copy in second.copies] == [(0, 2)] * num_copies
    assert [(part.start, part.stop) for part in third.prefill] == [(32, 40)] * 2


def test_priority_preempts_and_nothing_is_lost():
    some = Setting(max_num_seqs=1, max_num_batched_tokens=64, preempts=True)
    low, urgent = Job(0, [1, 2, 3], priority=5), Job(1, [4], priority=0)
    some.scheduler.add(low)
    some.step()
    some.step()
    before = list(low.output)
    some.scheduler.add(urgent)
    some.step()
    assert (some.released, low.sequence, urgent.sequence) == ([low], -1, 0)
    some.scheduler.remove(urgent)
    plan = some.step()
    assert [(part.start, part.stop, part.decides) for part in plan.prefill] == [(0, 3 + len(before) - 1, False)]
    some.step()
    assert low.output[: len(before)] == before
    assert len(low.output) > len(before)


def test_equal_priorities_go_by_arrival():
    some = Setting(max_num_seqs=1, max_num_batched_tokens=8, preempts=True)
    for job in (Job(0, [1]), Job(1, [2]), Job(2, [3], priority=-1)):
        some.scheduler.add(job)
    assert [job.index for job in some.step().admitted] == [2]


def test_who_cannot_grow_waits_with_what_it_computed():
    """Two texts of two blocks each, in a cache of five: the later one is put aside, and finds its blocks again."""
    some = Setting(
        num_blocks=5, block_tokens=4, draft=0, max_num_seqs=2, max_num_batched_tokens=64, reuses_prefixes=True
    )
    early, late = jobs = [Job(index, [index] * 6) for index in range(2)]
    for job in jobs:
        some.scheduler.add(job)
    while not some.released:
        some.step()
    assert (some.released, early.sequence >= 0, late.sequence) == ([late], True, -1)
    num_known = late.num_computed_tokens // 4 * 4
    assert num_known == 8
    some.step()
    assert late.sequence == -1, "there is no room yet"
    some.scheduler.remove(early)
    assert [(part.start, part.decides) for part in some.step().prefill] == []
    assert late.sequence >= 0
    assert some.scheduler.num_preempted == 1


def test_the_end_of_what_was_left_longest_ago_is_the_first_to_be_forgotten():
    some = Setting(num_blocks=6, block_tokens=4, max_num_seqs=1, max_num_batched_tokens=64, reuses_prefixes=True)

    def first_start(index, token):
        job = Job(index, [token] * 9)
        some.scheduler.add(job)
        (part,) = some.step().prefill
        some.scheduler.remove(job)
        return part.start

    assert [first_start(index, token) for index, token in enumerate([1, 2, 1, 3, 1, 2])] == [0, 0, 8, 0, 8, 4]


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens"])
def test_limits_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        SchedulerConfig(**({"max_num_seqs": 1, "max_num_batched_tokens": 1} | {name: 0}))


def test_the_scheduler_needs_no_model():
    code = "import sys, forerun.engine.scheduler; print({'torch', 'numpy', 'numba'} & sys.modules.keys())"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert finished.stdout == "set()\n"
