"""An EAGLE-3 head in passes of fixed shape, against the runner of passes of any shape."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated.heads import random_head_weights
from simulated.recording import TracingRecorder

from forerun.core.rows import Rows
from forerun.models.config import DecoderConfig
from forerun.models.decoder_weights import fill_decoder
from forerun.models.device_head import DeviceHead
from forerun.models.device_runner import DeviceRunner
from forerun.models.eagle3 import Eagle3Config
from forerun.models.eagle3_runner import Eagle3Runner, fill_head
from forerun.models.layout import parameter_shapes
from forerun.models.static_pass import PassGrid

LAYER = DecoderConfig(
    vocab_size=43, hidden_size=24, intermediate_size=40, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=6,
    max_len=128,
)  # fmt: skip
CONFIG = Eagle3Config(layer=LAYER, layer_ids=(0, 2), target_hidden_size=16, draft_vocab_size=30)
TARGET = replace(LAYER, hidden_size=16, num_layers=3)
SHAPES = parameter_shapes(TARGET)
VOCAB_IDS = np.sort(np.random.default_rng(2).choice(LAYER.vocab_size, 30, replace=False))
TOLERANCE = {"atol": 3e-5, "rtol": 0}


def pair(config=CONFIG) -> tuple[DeviceHead, Eagle3Runner]:
    head = fill_head(config, random_head_weights(config).__getitem__, dtype=torch.float32)
    options = {"num_sequences": 2, "capacity": 64, "vocab_ids": VOCAB_IDS}
    return DeviceHead(head, num_tree_slots=12, **options), Eagle3Runner(head, **options)


def text(length: int, *, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, LAYER.vocab_size, length).tolist()


def give(runners, sequence: int, start: int, num_tokens: int) -> None:
    features = np.random.default_rng([sequence, start]).standard_normal((num_tokens, 2, 16)).astype(np.float32)
    for runner in runners:
        runner.take_features(sequence, start, features)


def agree(runners, rows: Rows) -> None:
    device, plain = (runner.forward(rows) for runner in runners)
    read = rows.slots > 0  # a first token has nothing to be read with
    np.testing.assert_allclose(device[read], plain[read], **TOLERANCE)


@pytest.mark.parametrize("changes", [{}, {"norm_output": True, "fc_norm": True}, {"norm_before_residual": True}])
def test_states_given_and_own_are_read_as_by_the_plain_runner(changes):
    """What the target gave, then the head's own, token by token; then what the target gives instead of those."""
    runners = pair(replace(CONFIG, **changes))
    texts = {0: text(11), 1: text(7, seed=1)}
    for sequence, tokens in texts.items():
        give(runners, sequence, 0, len(tokens) - 1)
    agree(runners, Rows.chains([(sequence, 0, tokens) for sequence, tokens in texts.items()]))
    for step in range(3):
        agree(runners, Rows.chains([(0, 11 + step, text(1, seed=step)), (1, 7 + step, text(1, seed=9 + step))]))
    give(runners, 0, 10, 2)
    agree(runners, Rows.chains([(0, 11, text(2, seed=5))]))
    agree(runners, Rows.chains([(0, 13, text(1, seed=6)), (1, 10, text(1, seed=7))]))


def test_what_a_target_on_the_device_lends_is_what_the_host_would_hand_over():
    device, plain = pair()
    target = DeviceRunner(
        fill_decoder(TARGET, lambda name: np.random.default_rng(len(name)).standard_normal(SHAPES[name], np.float32)),
        num_sequences=2, capacity=64,
    )  # fmt: skip
    target.keep_features(CONFIG.layer_ids)
    tokens = text(9, seed=3)
    target.forward(Rows.chains([(1, 0, tokens)]))
    for start, stop in ((0, 5), (5, 9)):
        device.borrow_features(1, start, stop, lender=target)
        plain.take_features(1, start, target.read_features(1, start, stop))
    agree((device, plain), Rows.chains([(1, 0, [*tokens, 7])]))


def test_branches_read_their_own_states():
    runners = pair()
    give(runners, 0, 0, 8)
    agree(runners, Rows.chains([(0, 0, text(9))]))
    ancestors = np.array([[20, 0], [21, 0]])
    for level in range(2):
        slots = 20 + 2 * level + np.arange(2)
        rows = Rows(
            sequences=np.zeros(2, np.int64),
            token_ids=np.array(text(2, seed=level)),
            positions=np.full(2, 9 + level),
            slots=slots,
            lengths=np.full(2, 9),
            ancestors=ancestors,
            num_ancestors=np.full(2, level + 1),
        )
        agree(runners, rows)
        ancestors = np.array([[20, 22], [21, 23]])


def test_a_chain_is_read_one_after_the_other_and_what_is_given_stays():
    device, plain = pair()
    give((device, plain), 0, 0, 8)
    agree((device, plain), Rows.chains([(0, 0, text(9))]))
    chain = text(3, seed=4)
    slots = torch.arange(9, 12).unsqueeze(0)
    grid = PassGrid(
        token_ids=torch.tensor([chain]),
        positions=slots,
        slots=slots,
        lengths=torch.tensor([9]),
        listed=slots,
        visible=torch.ones(1, 3, 3, dtype=torch.bool).tril(),
        before=slots - 1,
    )
    with torch.no_grad():
        logits = device.chain_logits(grid, span=16)[0].numpy()
    expected = [plain.forward(Rows.chains([(0, 9 + place, [token])]))[0] for place, token in enumerate(chain)]
    np.testing.assert_allclose(logits, expected, **TOLERANCE)


def test_reading_gives_nothing_back():
    head = fill_head(CONFIG, random_head_weights(CONFIG).__getitem__, dtype=torch.float32)
    recorder = TracingRecorder()
    device = DeviceHead(head, num_sequences=1, capacity=32, recorder=recorder)
    assert device.vocab_size == 30
    assert device.read(Rows.chains([(0, 1, [3, 4])])).result().shape == (0, 30)
    assert recorder.num_runs == 1
