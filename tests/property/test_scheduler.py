"""The scheduler in any course of events: nobody is lost, no sequence is held twice, and the cache holds what it says.

A twin of the cache is kept token by token: each plan is carried out on it, and a request that decodes must find its own
text there, whatever was copied, reused, preempted or cut off before.
"""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forerun.core.errors import ConfigError
from forerun.engine.prefix_cache import BLOCK_TOKENS
from forerun.engine.scheduler import Scheduler, SchedulerConfig


@dataclass(eq=False)
class Job:
    index: int
    prompt: list[int]
    priority: int = 0
    sequence: int = -1
    num_prefilled: int = 0
    output: list[int] = field(default_factory=list)

    @property
    def is_resumed(self):
        return bool(self.output)

    def computed_tokens(self):
        return [*self.prompt, *self.output[:-1]]


def scheduler(released=None, **options) -> Scheduler[Job]:
    return Scheduler(SchedulerConfig(**options), on_release=(lambda job: None) if released is None else released.append)


def carry_out(plan, cache, *, budget):
    """Do to the twin what the engine does to the target's cache."""
    for copy in plan.copies:
        assert copy.source != copy.target
        cache[copy.target][: copy.num_tokens] = cache[copy.source][: copy.num_tokens]
    assert sum(part.stop - part.start for part in plan.prefill) <= budget
    assert not (plan.prefill and plan.decode)
    for part in plan.prefill:
        cache[part.request.sequence][part.start : part.stop] = part.request.computed_tokens()[part.start : part.stop]
        if part.decides:
            assert part.request.output == []
            part.request.output.append(part.request.index)
    for job in plan.decode:
        tokens = job.computed_tokens()
        held = cache[job.sequence]
        assert held[: len(tokens)] == tokens, "the sequence of a decoding request does not hold its text"
        # Two tokens are decided; rows of a rejected draft go beyond what is accepted.
        del held[len(tokens) :]
        job.output += [job.index, len(job.output)]
        held += [*job.computed_tokens()[len(tokens) :], -7, -7]


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_seqs=st.integers(1, 3),
        budget=st.integers(1, 40),
        prefers_prefill=st.booleans(),
        reuses=st.booleans(),
        preempts=st.booleans(),
    )
    def begin(self, num_seqs, budget, prefers_prefill, reuses, preempts):
        self.num_seqs, self.budget, self.preempts = num_seqs, budget, preempts
        self.released = []
        self.scheduler = scheduler(
            self.released,
            max_num_seqs=num_seqs,
            max_num_batched_tokens=budget,
            prefers_prefill=prefers_prefill,
            reuses_prefixes=reuses,
            preempts=preempts,
        )
        self.cache = [[] for _ in range(num_seqs)]
        self.jobs = {}
        self.num_jobs = 0

    @rule(
        stem=st.integers(0, 2),
        shared=st.sampled_from([0, 5, 16, 35, 48]),
        own=st.integers(1, 20),
        priority=st.integers(0, 2),
    )
    def add(self, stem, shared, own, priority):
        job = Job(self.num_jobs, [stem] * shared + [100 + self.num_jobs] * own, priority)
        self.num_jobs += 1
        self.jobs[job.index] = job
        self.scheduler.add(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def leave(self, data):
        job = data.draw(st.sampled_from(sorted(self.jobs.values(), key=lambda job: job.index)))
        held_one = job.sequence >= 0
        num_released = len(self.released)
        self.scheduler.remove(job)
        assert len(self.released) - num_released == held_one
        assert job.sequence == -1
        del self.jobs[job.index]

    @rule(times=st.integers(1, 4))
    def step(self, times):
        for _ in range(times):
            plan = self.scheduler.plan()
            assert bool(plan.prefill or plan.decode) == self.scheduler.has_work, "work, and nothing is done"
            carry_out(plan, self.cache, budget=self.budget)
            running = self.scheduler.running
            assert len(running) <= min(self.num_seqs, self.budget)
            waiting = [job for job in self.jobs.values() if job.sequence < 0]
            if waiting and self.preempts and len(running) == min(self.num_seqs, self.budget):
                assert min(job.priority for job in waiting) >= min(job.priority for job in running)

    @invariant()
    def is_sound(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert self.scheduler.has_work == bool(self.jobs)

    def teardown(self):
        """Everyone who stays gets to decode in the end: nobody is starved by the others' number."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(4000):
            if not self.jobs:
                break
            carry_out(self.scheduler.plan(), self.cache, budget=self.budget)
            for job in [job for job in self.jobs.values() if len(job.output) > 6]:
                self.scheduler.remove(job)
                del self.jobs[job.index]
        assert not self.jobs, "some never got their turn"
        self.scheduler.check_integrity()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_long_prompt_does_not_hold_up_those_who_decode():
    some = scheduler(max_num_seqs=2, max_num_batched_tokens=8)
    first, long = Job(0, [1, 2]), Job(1, [3] * 80)
    cache = [[], []]
    some.add(first)
    carry_out(some.plan(), cache, budget=8)
    some.add(long)
    kinds = []
    while not long.output:
        plan = some.plan()
        carry_out(plan, cache, budget=8)
        kinds.append("round" if plan.decode else "part")
    assert kinds == ["round", "part"] * 10


def test_a_prompt_that_is_cached_runs_its_last_token_only():
    """Also where the prompt is a whole number of blocks: what follows its last token has to be decided."""
    some = scheduler(max_num_seqs=2, max_num_batched_tokens=64, reuses_prefixes=True)
    prompt = list(range(2 * BLOCK_TOKENS))
    cache = [[], []]
    for index in range(2):
        job = Job(index, prompt)
        some.add(job)
        plan = some.plan()
        carry_out(plan, cache, budget=64)
        assert [(part.start, part.stop) for part in plan.prefill] == [((0, 32), (16, 32))[index]]
        assert plan.copies == []  # the sequence itself is reused
        some.remove(job)


def test_a_running_request_lends_its_prefix_and_twins_wait_for_it():
    some = scheduler(max_num_seqs=3, max_num_batched_tokens=64, reuses_prefixes=True)
    jobs = [Job(index, [5] * 40) for index in range(3)]
    cache = [[], [], []]
    for job in jobs:
        some.add(job)
    first = some.plan()
    assert [part.request.index for part in first.prefill] == [0]
    carry_out(first, cache, budget=64)
    second = some.plan()
    carry_out(second, cache, budget=64)
    third = some.plan()
    carry_out(third, cache, budget=64)
    assert [request.index for request in second.decode] == [0]
    assert len(second.copies) == 2
    assert [(part.start, part.stop) for part in third.prefill] == [(32, 40)] * 2


def test_priority_preempts_and_nothing_is_lost():
    released = []
    some = scheduler(released, max_num_seqs=1, max_num_batched_tokens=64, preempts=True)
    cache = [[]]
    low, urgent = Job(0, [1, 2, 3], priority=5), Job(1, [4], priority=0)
    some.add(low)
    carry_out(some.plan(), cache, budget=64)
    carry_out(some.plan(), cache, budget=64)
    before = list(low.output)
    some.add(urgent)
    carry_out(some.plan(), cache, budget=64)
    assert (released, low.sequence, urgent.sequence) == ([low], -1, 0)
    some.remove(urgent)
    plan = some.plan()
    assert [(part.start, part.stop, part.decides) for part in plan.prefill] == [(0, 3 + len(before) - 1, False)]
    carry_out(plan, cache, budget=64)
    carry_out(some.plan(), cache, budget=64)
    assert low.output[: len(before)] == before
    assert len(low.output) > len(before)


def test_equal_priorities_go_by_arrival():
    some = scheduler(max_num_seqs=1, max_num_batched_tokens=8, preempts=True)
    for job in (Job(0, [1]), Job(1, [2]), Job(2, [3], priority=-1)):
        some.add(job)
    assert [job.index for job in some.plan().admitted] == [2]


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens"])
def test_limits_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        SchedulerConfig(**({"max_num_seqs": 1, "max_num_batched_tokens": 1} | {name: 0}))


def test_the_scheduler_needs_no_model():
    code = "import sys, forerun.engine.scheduler; print({'torch', 'numpy', 'numba'} & sys.modules.keys())"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert finished.stdout == "set()\n"
