"""Rounds without an engine: what they take on a machine, and clients whose texts grow, end and make room for others."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from forerun.engine.speculative.load import Load

MAX_TOKENS = 64
HICCUP = 5.0


def flat_then_rising(num_rows):
    """Seconds of a pass on a CPU core: the weights are read, then rows count."""
    return max(18.0, 4.0 + 2.0 * num_rows) * 1e-3


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What rounds take.

    Attributes:
        pass_s: Seconds of a pass by its rows, without texts.
        read_s: Seconds that each cached token adds to a pass.
        seen_s: Seconds for each row that looks at it.
        draft_s: Seconds for each token of the drafts, all requests together.
        any_draft_s: Seconds that drafts of any length take besides.
        catch_up_s: Seconds besides, where a draft was idle or there is a new text.
        new_text_s: Seconds for each text that a draft has not read yet.
        noise: Relative standard deviation of what is measured; then one round in a hundred takes five times as long.
    """

    pass_s: Callable[[int], float]
    read_s: float = 0.0
    seen_s: float = 0.0
    draft_s: float = 0.0
    any_draft_s: float = 0.0
    catch_up_s: float = 0.0
    new_text_s: float = 0.0
    noise: float = 0.0

    def forward_s(self, load, length):
        context_s = (self.read_s + self.seen_s * (1 + length)) * load.num_context
        return self.pass_s(load.num_requests * (1 + length)) + context_s

    def other_s(self, length, *, catches_up, num_unread):
        reading_s = catches_up * self.catch_up_s + num_unread * self.new_text_s
        return self.draft_s * length + bool(length) * (self.any_draft_s + reading_s)


@dataclass
class Course:
    """What was chosen, round by round, and what that and other choices give, without the noise.

    Attributes:
        machine: Takes its time.
        acceptance_rate: Chance of a draft token.
        chosen: Lengths.
        num_new: How many texts were new.
        loads: What there was to do.
    """

    machine: Machine
    acceptance_rate: float
    chosen: list[int] = field(default_factory=list)
    num_new: list[int] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)

    def rate(self, first=0):
        """Return tokens per second, from a round on."""
        return self._rate(self.chosen, first)

    def fixed_rate(self, length, first=0):
        """Return what always the same length would have given for the same loads."""
        return self._rate([length] * len(self.chosen), first)

    def best_fixed_rate(self, first=0):
        """Return what the best length that is always the same would have given."""
        return max(self.fixed_rate(length, first) for length in range(9))

    def _rate(self, lengths, first):
        num_tokens = time_s = 0.0
        num_unread = 0
        for number, (length, load) in enumerate(zip(lengths, self.loads, strict=True)):
            catches_up = self.num_new[number] > 0 or lengths[number - 1] == 0
            num_unread = min(load.num_requests, num_unread + self.num_new[number])
            if number >= first:
                num_tokens += load.num_requests * sum(self.acceptance_rate**place for place in range(length + 1))
                other_s = self.machine.other_s(length, catches_up=catches_up, num_unread=num_unread)
                time_s += self.machine.forward_s(load, length) + other_s
            num_unread = 0 if length else num_unread
        return num_tokens / time_s


def play(controller, machine, num_requests, *, num_rounds, prompt_tokens=(0,), acceptance_rate=0.6, seed=0):
    """Let a controller choose against a draft that is right with a fixed chance.

    Args:
        controller: Chooses, and observes.
        machine: Takes its time.
        num_requests: Side by side at any time; one that has its tokens is followed by another.
        num_rounds: To be played.
        prompt_tokens: Lengths of prompts, each as likely as the others.
        acceptance_rate: Chance of a draft token.
        seed: Of all chance.
    """
    rng, course = random.Random(seed), Course(machine, acceptance_rate)
    texts = [[rng.choice(prompt_tokens), rng.randrange(MAX_TOKENS)] for _ in range(num_requests)]
    was_idle, num_new, num_unread = True, num_requests, 0
    for _ in range(num_rounds):
        load = Load(num_requests=num_requests, num_context=sum(prompt + output for prompt, output in texts))
        length = controller.num_speculative_tokens(load)
        course.chosen.append(length)
        course.num_new.append(num_new)
        course.loads.append(load)
        accepted = [_accepted(rng, length, acceptance_rate) for _ in texts]
        forward_s = machine.forward_s(load, length)
        num_unread = min(num_requests, num_unread + num_new)
        other_s = machine.other_s(length, catches_up=was_idle or num_new > 0, num_unread=num_unread)
        slower = _slower(rng, machine.noise)
        controller.observe(
            load=load,
            proposed=[length] * num_requests,
            accepted=accepted,
            round_s=slower * (forward_s + other_s),
            forward_s=slower * forward_s,
            num_new=num_new,
        )
        num_unread = 0 if length else num_unread
        was_idle, num_new = length == 0, 0
        for text, number in zip(texts, accepted, strict=True):
            text[1] += 1 + number
            if text[1] >= MAX_TOKENS:
                text[:] = rng.choice(prompt_tokens), 0
                num_new += 1
    return course


def _accepted(rng, length, acceptance_rate):
    number = 0
    while number < length and rng.random() < acceptance_rate:
        number += 1
    return number


def _slower(rng, noise):
    if noise == 0:
        return 1.0
    return max(0.5, rng.gauss(1.0, noise)) * (HICCUP if rng.random() < 0.01 else 1.0)
