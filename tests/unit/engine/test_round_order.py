"""In which order a round asks target and drafts: what is prepared is asked for while the target verifies."""

import pytest
from simulated.device_world import CAPACITY, CONFIG, EAGER, PARAMS, PROMPTS, decode, decoder, new_target

from forerun.engine.speculative.plain import NoSpeculator
from forerun.models.torch_runner import TorchRunner

EVENTS: list[str] = []


class Noting(NoSpeculator):
    """Drafts nothing, and notes when it is asked."""

    def speculate(self, requests, limits):
        EVENTS.append("speculate")
        return super().speculate(requests, limits)

    def prepare(self):
        EVENTS.append("prepare")


class Noted:
    """Results that note when they are asked for."""

    def __init__(self, own):
        self._own = own

    def result(self):
        EVENTS.append("result")
        return self._own.result()


def launching():
    target = new_target(EAGER)
    launch = target.launch

    def launch_and_note(*args, **options):
        EVENTS.append("launch")
        return Noted(launch(*args, **options))

    target.launch = launch_and_note
    return target


def waiting():
    target = TorchRunner(decoder(), num_sequences=2, capacity=CAPACITY)
    forward = target.forward

    def forward_and_note(*args, **options):
        EVENTS.append("pass")
        return forward(*args, **options)

    target.forward = forward_and_note
    return target


@pytest.mark.parametrize(
    ("new", "prompt", "a_round"),
    [
        (launching, ["launch", "result"], ["speculate", "launch", "prepare", "result"]),
        (waiting, ["pass"], ["speculate", "prepare", "pass"]),
    ],
)
def test_drafts_prepare_when_the_verification_has_begun(new, prompt, a_round):
    """A target that the host has to wait for runs last: what was asked of a device before runs beside it."""
    EVENTS.clear()
    assert CONFIG.vocab_size > max(PROMPTS[0])
    outputs, _ = decode(new(), Noting(), PARAMS[:1], prompts=PROMPTS[:1])
    num_rounds = len(outputs[0][0]) - 1
    assert num_rounds > 5
    assert prompt + a_round * num_rounds == EVENTS
