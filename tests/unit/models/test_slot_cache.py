"""Keys and values that one cache takes from another: at once for a span, or in operations of fixed shape."""

import numpy as np
import pytest
import torch
from simulated.device_world import CONFIG

from forerun.core.errors import RequestError
from forerun.models.cache_bounds import check_span
from forerun.models.slot_cache import SlotCache

NUM_SEQUENCES, CAPACITY, SPARE = 3, 12, 12
RUNS = ((0, 1, 1), (1, 0, 1))
"""The layers change places."""


def cache(seed: int) -> SlotCache:
    made = SlotCache(
        CONFIG, num_sequences=NUM_SEQUENCES, capacity=CAPACITY, num_spare=1, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    made._states_LKCGSD.copy_(torch.from_numpy(np.random.default_rng(seed).standard_normal(made._states_LKCGSD.shape)))
    made.positions.fill_(-1)
    return made


def test_slots_taken_in_fixed_shape_are_those_taken_span_by_span():
    spans, lender = [(2, 5), (0, 0), (7, 12)], cache(0)
    expected, found = cache(1), cache(1)
    for sequence, (start, stop) in enumerate(spans):
        expected.borrow_states(sequence, start, stop, lender=lender, runs=RUNS)
    starts, stops = torch.tensor(spans).unsqueeze(2).unbind(dim=1)
    slots = starts + torch.arange(8)
    found.borrow_slots(slots, is_lent=slots < stops, lender=lender, runs=RUNS, spare_slot=SPARE)
    assert torch.equal(found._states_LKCGSD[..., :CAPACITY, :], expected._states_LKCGSD[..., :CAPACITY, :])
    assert torch.equal(found.positions[:, :CAPACITY], expected.positions[:, :CAPACITY])
    assert not torch.equal(found._states_LKCGSD[..., :CAPACITY, :], cache(1)._states_LKCGSD[..., :CAPACITY, :])


@pytest.mark.parametrize(("start", "stop", "wrong"), [(-1, 3, -1), (4, 14, 13), (13, 14, 13)])
def test_a_span_outside_the_cache_is_refused(start, stop, wrong):
    with pytest.raises(RequestError, match=f"slot {wrong}: must be from 0 to 11"):
        check_span(0, start, stop, num_sequences=NUM_SEQUENCES, capacity=CAPACITY)
    check_span(0, 12, 12, num_sequences=NUM_SEQUENCES, capacity=CAPACITY)  # nothing
