"""What every ``LanguageModel`` promises, on random models of every family and on ensembles of them.

Each text is also computed from scratch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from simulated.parallel import led_by_first
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from forerun.core.env import cpu_info
from forerun.core.errors import ConfigError, RequestError
from forerun.core.paging import PagedModel
from forerun.core.protocols import LanguageModel, SlotCopier
from forerun.core.rows import Rows
from forerun.models.checkpoint import Checkpoint, Ensemble
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.decoder_weights import fill_decoder
from forerun.models.device_runner import DeviceRunner
from forerun.models.layout import parameter_shapes
from forerun.models.model_share import ModelSplit
from forerun.models.runner import build_runner, build_target
from forerun.models.tensor_parallel import TensorParallelRunner
from forerun.models.tokenizer import Tokenizer
from forerun.nn.int8_linear import quantize_weight

CAPACITY = 64
TINY = DecoderConfig(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    max_len=128,
)
FAMILIES = {
    "llama": TINY,
    "llama-tied": replace(TINY, tie_embeddings=True),
    "llama-one-head-per-group": replace(TINY, num_kv_heads=6),
    "llama-wide-heads": replace(TINY, head_dim=40, num_kv_heads=1),
    "qwen2": replace(TINY, family="qwen2", attention_bias=True, norm_eps=1e-6),
    "qwen3": replace(TINY, family="qwen3", qk_norm=True, head_dim=16),
    "mistral-window": replace(TINY, family="mistral", sliding_window=7),
}
DEEPER = replace(TINY, num_layers=3, intermediate_size=64)
ENSEMBLES = {
    "mixture": ("probability", (TINY, TINY, TINY)),
    "product": ("logit", (TINY, TINY)),
    "mixture-of-shapes": ("probability", (TINY, DEEPER, DEEPER)),
    "mixture-of-qwen": ("probability", (FAMILIES["qwen2"], FAMILIES["qwen2"], FAMILIES["llama-tied"])),
}
OTHER_RUNNERS = [
    ("llama-tied", "static"),
    ("mistral-window", "static"),
    ("qwen2", "shared"),
]
"""``static``: passes of fixed shape, as on a GPU. ``shared``: two shares of the model, each with half of its heads."""
ONE_TYPE = {
    "mistral-window": "float32",
    "product": "int8",
    "mixture-of-shapes": "float32",
    "mixture-of-qwen": "float32",
}
CASES = [
    (name, dtype)
    for name in (*FAMILIES, *ENSEMBLES)
    for dtype in ("float32", "int8")
    if ONE_TYPE.get(name, dtype) == dtype
] + OTHER_RUNNERS


def random_weights(config: DecoderConfig, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights far from the initial values, where norms are 1, biases 0 and attention nearly uniform."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.uniform(0.5, 1.5, shape) if "norm" in name else rng.standard_normal(shape) * (1.5 / shape[-1] ** 0.5)
        ).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


def rounded_weights(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the int8 runner's weights stand for; its embedding is kept in float16."""
    out: dict[str, np.ndarray] = {}
    for name, values in weights.items():
        if values.ndim == 1:
            out[name] = values
        elif name == "embed_tokens.weight":
            out[name] = values.astype(np.float16).astype(np.float32)
        else:
            levels, scale = quantize_weight(values)
            out[name] = levels * scale[:, None]
    if "lm_head.weight" not in out:
        levels, scale = quantize_weight(weights["embed_tokens.weight"])
        out["lm_head.weight"] = levels * scale[:, None]
    return out


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A runner's recipe, and the decoder that computes the same law from scratch.

    Attributes:
        build: Makes a fresh runner; keywords replace the defaults of one sequence and :data:`CAPACITY` slots.
        oracle: The dense twin: token ids ``[B, T]`` to logits ``[B, T, V]``.
        num_layers: Layers with keys and values.
        is_ensemble: Whether laws of several models are averaged.
        atol: How far its logits may be.
        same: Asserts that two ways of computing a row agree: bitwise for int8.
    """

    build: Callable[..., LanguageModel]
    oracle: Callable[[torch.Tensor], torch.Tensor]
    num_layers: int
    is_ensemble: bool
    atol: float
    same: Callable[[np.ndarray, np.ndarray], None]

    def logits(self, tokens: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return self.oracle(torch.tensor([tokens]))[0].numpy()

    def assert_right(self, logits: np.ndarray, tokens: list[int]) -> None:
        """Compare the logits of the last rows of a text with the oracle's."""
        np.testing.assert_allclose(logits, self.logits(tokens)[len(tokens) - len(logits) :], atol=self.atol, rtol=0)


class Weights:
    """A ``TensorReader`` over a dictionary."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.names, self.tensor = lambda: tuple(weights), weights.__getitem__


def checkpoint(
    config: DecoderConfig, weights: dict[str, np.ndarray], *, ensemble: Ensemble | None = None
) -> Checkpoint:
    return Checkpoint(
        config=config,
        tokenizer=Tokenizer(Backend(WordLevel({}, unk_token="?"))),
        eos_ids=frozenset(),
        source="random",
        size_bytes=0,
        tensors=Weights(weights),
        quantised=False,
        ensemble=ensemble,
    )


def twin(config: DecoderConfig, weights: dict[str, np.ndarray], *, is_int8: bool) -> Decoder:
    expected = rounded_weights(weights) if is_int8 else weights
    return fill_decoder(replace(config, tie_embeddings=not is_int8 and config.tie_embeddings), expected.__getitem__)


def ensemble_of(name: str, *, dtype: str) -> tuple[Callable[..., LanguageModel], Callable, int]:
    """Return the recipe, the twin and the number of layers of an ensemble; its laws are averaged by hand here."""
    average, configs = ENSEMBLES[name]
    members = [(config, random_weights(config, seed=seed)) for seed, config in enumerate(configs)]
    ensemble = Ensemble(members=tuple(checkpoint(*member) for member in members), average=average)
    twins = [twin(*member, is_int8=dtype == "int8") for member in members]

    def build(**changes) -> LanguageModel:
        options = {"num_sequences": 1, "capacity": CAPACITY} | changes
        return build_target(checkpoint(configs[0], {}, ensemble=ensemble), dtype=dtype, **options)

    def oracle(token_ids: torch.Tensor) -> torch.Tensor:
        logits = torch.stack([decoder(token_ids).double() for decoder in twins])
        averaged = logits.softmax(dim=-1).mean(dim=0).log() if average == "probability" else logits.mean(dim=0)
        return averaged.float()

    return build, oracle, sum(config.num_layers for config in configs)


def shared_runner(
    config: DecoderConfig, weights: dict[str, np.ndarray], *, vocab_ids: np.ndarray | None = None, **cache: int
) -> LanguageModel:
    """Two shares of a model, in two threads."""
    return led_by_first(
        lambda collective: TensorParallelRunner(
            ModelSplit.of(config, (1, 1)),
            weights.__getitem__,
            lambda decoder, **share: DeviceRunner(decoder, vocab_ids=vocab_ids, **share, **cache),
            collective=collective,
            vocab_ids=vocab_ids,
        ),
        size=2,
    )


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def subject(request) -> Subject:
    name, dtype = request.param
    is_int8 = dtype == "int8"
    if is_int8 and not cpu_info().has_int8_dot:
        pytest.skip("this CPU has no exact int8 products")

    def build(**changes) -> LanguageModel:
        options = {"num_sequences": 1, "capacity": CAPACITY} | changes
        if dtype == "static":
            return DeviceRunner(fill_decoder(FAMILIES[name], weights.__getitem__), **options)
        if dtype == "shared":
            return shared_runner(FAMILIES[name], weights, **options)
        return build_runner(FAMILIES[name], weights.__getitem__, dtype=dtype, **options)

    if name in ENSEMBLES:
        build, oracle, num_layers = ensemble_of(name, dtype=dtype)
    else:
        weights = random_weights(FAMILIES[name])
        oracle, num_layers = twin(FAMILIES[name], weights, is_int8=is_int8), FAMILIES[name].num_layers

    def close(first: np.ndarray, second: np.ndarray) -> None:
        np.testing.assert_allclose(first, second, atol=2e-5, rtol=0)

    return Subject(
        build=build,
        oracle=oracle,
        num_layers=num_layers,
        is_ensemble=name in ENSEMBLES,
        atol=4e-3 if is_int8 else 2e-5,
        same=np.testing.assert_array_equal if is_int8 else close,
    )


@pytest.fixture
def tokens() -> list[int]:
    return np.random.default_rng(1).integers(0, TINY.vocab_size, 40).tolist()


def chain(tokens: list[int], *, start: int = 0, sequence: int = 0) -> Rows:
    return Rows.chains([(sequence, start, tokens)])


def branch(token_ids: list[int], *, prefix: int, first_slot: int, start: int, num_before: int = 0) -> Rows:
    """Rows of one branch of a tree: a chain in slots of its own, of which ``num_before`` are already cached."""
    count, depth = len(token_ids), num_before + len(token_ids)
    slots = np.arange(first_slot, first_slot + depth)
    return Rows(
        sequences=np.zeros(count, np.int64),
        token_ids=np.array(token_ids),
        positions=np.arange(start, start + count),
        slots=slots[num_before:],
        lengths=np.full(count, prefix),
        ancestors=np.tile(slots, (count, 1)),
        num_ancestors=np.arange(num_before + 1, depth + 1),
    )


def test_a_whole_text_matches_the_oracle(subject, tokens):
    logits = subject.build().forward(chain(tokens))
    assert logits.shape == (40, TINY.vocab_size)
    assert logits.dtype == np.float32
    assert np.ptp(subject.logits(tokens), axis=1).min() > 1  # the comparison means something
    subject.assert_right(logits, tokens)


@pytest.mark.parametrize("widths", [[1] * 40, [13, 1, 1, 6, 12, 7], [3, 37], [39, 1]])
def test_any_chunking_gives_the_same_logits(subject, tokens, widths):
    whole, runner, start = subject.build().forward(chain(tokens)), subject.build(), 0
    for width in widths:
        logits = runner.forward(chain(tokens[start : start + width], start=start))
        subject.same(logits, whole[start : start + width])
        start += width
    assert start == len(tokens)


def test_slots_are_copied_from_sequence_to_sequence(subject, tokens):
    runner = subject.build(num_sequences=2)
    if not isinstance(runner, SlotCopier):
        pytest.skip("its cache is copied through the host")
    runner.forward(chain(tokens[:30]))
    runner.forward(chain(tokens[30:] * 2, sequence=1))
    runner.copy_slots(0, 1, 0, 24)
    subject.assert_right(runner.forward(chain(tokens[24:], start=24, sequence=1)), tokens)
    with pytest.raises(RequestError):
        runner.copy_slots(0, 2, 0, 3)
    with pytest.raises(RequestError):
        runner.copy_slots(0, 1, 0, CAPACITY + 1)


def test_overwriting_rolls_back(subject, tokens):
    runner = subject.build()
    runner.forward(chain(tokens))
    other = [*tokens[:17], *reversed(tokens[17:])]
    subject.assert_right(runner.forward(chain(other[17:25], start=17)), other[:25])
    subject.assert_right(runner.forward(chain(other[25:26], start=25)), other[:26])
    subject.same(runner.forward(chain(other[20:40], start=20)), subject.build().forward(chain(other))[20:])


def test_a_wrong_token_in_the_cache_is_seen(subject, tokens):
    """The control of the rollback test: without the overwriting, logits differ."""
    runner = subject.build()
    runner.forward(chain(tokens[:20]))
    changed = [*tokens[:18], (tokens[18] + 1) % TINY.vocab_size, *tokens[19:]]
    logits = runner.forward(chain(tokens[20:21], start=20))
    assert np.abs(logits - subject.logits(changed)[20]).max() > 10 * subject.atol


def test_branches_of_a_tree_are_chains(subject, tokens):
    """Two branches after one prefix, in one pass, in slots side by side, then a further token on each."""
    runner, prefix = subject.build(), tokens[:10]
    runner.forward(chain(prefix))
    left, right = [5, 17, 60, 3], [8, 17, 2, 90]
    rows = [
        branch(left[:3], prefix=10, first_slot=20, start=10),
        branch(right[:3], prefix=10, first_slot=40, start=10),
    ]
    logits = runner.forward(Rows.concatenate(rows))
    subject.assert_right(logits[:3], prefix + left[:3])
    subject.assert_right(logits[3:], prefix + right[:3])
    longer = [
        branch(left[3:], prefix=10, first_slot=20, start=13, num_before=3),
        branch(right[3:], prefix=10, first_slot=40, start=13, num_before=3),
    ]
    logits = runner.forward(Rows.concatenate(longer))
    subject.assert_right(logits[:1], prefix + left)
    subject.assert_right(logits[1:], prefix + right)


def test_a_tree_may_leave_gaps_and_have_no_prefix(subject):
    runner, text = subject.build(), [4, 9, 33]
    slots = np.array([3, 31, 50])
    rows = Rows(
        sequences=np.zeros(3, np.int64),
        token_ids=np.array(text),
        positions=np.arange(3),
        slots=slots,
        lengths=np.zeros(3, np.int64),
        ancestors=np.tile(slots, (3, 1)),
        num_ancestors=np.arange(1, 4),
    )
    subject.assert_right(runner.forward(rows), text)


def test_moved_slots_continue_as_a_chain(subject, tokens):
    runner, prefix, left = subject.build(), tokens[:10], [5, 17, 60]
    runner.forward(chain(prefix))
    runner.forward(branch(left, prefix=10, first_slot=33, start=10))
    runner.move_slots(0, [33, 34, 35], [10, 11, 12])
    subject.assert_right(runner.forward(chain(tokens[20:30], start=13)), prefix + left + tokens[20:30])


def test_sources_are_read_before_targets_are_written(subject, tokens):
    runner = subject.build()
    runner.forward(chain(tokens[:10]))
    runner.forward(branch([5, 17, 60], prefix=10, first_slot=11, start=10))
    runner.move_slots(0, [11, 12, 13], [10, 11, 12])
    subject.assert_right(runner.forward(chain([1], start=13)), [*tokens[:10], 5, 17, 60, 1])


def test_states_read_from_one_cache_continue_the_text_in_another(subject, tokens):
    """Across the panels of a cache, in parts, into a sequence that held another text."""
    source, sink = subject.build(num_sequences=2), subject.build(num_sequences=3)
    source.forward(chain(tokens, sequence=1))
    sink.forward(chain(tokens[::-1], sequence=2))
    for start, stop in ((0, 3), (3, 35)):
        states = source.read_states(1, start, stop, layer_ids=range(subject.num_layers))
        assert states.dtype == np.float32
        assert states.shape == (stop - start, subject.num_layers, 2, *states.shape[3:])
        sink.write_states(2, start, states)
    whole = subject.build().forward(chain(tokens))
    subject.same(sink.forward(chain(tokens[35:], start=35, sequence=2)), whole[35:])


def test_states_come_in_the_order_of_the_layers_asked_for(subject, tokens):
    runner = subject.build()
    runner.forward(chain(tokens))
    both = runner.read_states(0, 5, 8, layer_ids=[0, 1])
    assert not np.array_equal(both[:, 0], both[:, 1])
    assert np.array_equal(runner.read_states(0, 5, 8, layer_ids=[1, 0]), both[:, ::-1])
    assert runner.read_states(0, 8, 8, layer_ids=[1]).shape == (0, 1, *both.shape[2:])


@pytest.mark.parametrize(("sequence", "start", "stop"), [(1, 0, 2), (0, -1, 2), (0, CAPACITY - 1, CAPACITY + 1)])
def test_states_outside_the_cache_are_refused(subject, sequence, start, stop):
    runner = subject.build()
    with pytest.raises(RequestError):
        runner.read_states(sequence, start, stop, layer_ids=[0])
    states = np.zeros((stop - start, *runner.read_states(0, 0, 1, layer_ids=[0, 1]).shape[1:]), np.float32)
    with pytest.raises(RequestError):
        runner.write_states(sequence, start, states)


def test_sequences_do_not_see_each_other(subject, tokens):
    runner = subject.build(num_sequences=4)
    texts = {0: tokens[:11], 2: tokens[5:9], 3: tokens[20:38]}
    logits = runner.forward(Rows.chains([(sequence, 0, text) for sequence, text in texts.items()]))
    more = runner.forward(Rows.chains([(1, 0, [7, 8]), (2, 4, [9]), (3, 18, [1, 2, 3])]))
    runner.move_slots(2, [4], [3])
    start = 0
    for text in texts.values():
        subject.same(logits[start : start + len(text)], subject.build().forward(chain(text)))
        start += len(text)
    subject.same(more[:2], subject.build().forward(chain([7, 8])))
    subject.same(more[2:3], subject.build().forward(chain([*texts[2], 9]))[-1:])
    subject.same(more[3:], subject.build().forward(chain([*texts[3], 1, 2, 3]))[-3:])
    subject.same(
        runner.forward(chain([4], start=21, sequence=3)),
        subject.build().forward(chain([*texts[3], 1, 2, 3, 4]))[-1:],
    )


def test_only_the_rows_asked_for(subject, tokens):
    whole = subject.build().forward(chain(tokens))
    for wanted in ([39], [0, 7, 8], [5, 5], []):
        rows = np.array(wanted, np.int64)
        logits = subject.build().forward(chain(tokens), logit_rows=rows)
        assert logits.shape == (len(wanted), TINY.vocab_size)
        subject.same(logits, whole[rows])


def test_a_reduced_vocabulary_keeps_its_columns(subject, tokens):
    if subject.is_ensemble:
        pytest.skip("an ensemble is a target, with its whole vocabulary")
    vocab_ids = np.array([0, 3, 4, 50, 96])
    runner, whole = subject.build(vocab_ids=vocab_ids), subject.build()
    assert runner.vocab_size == 5
    assert runner.vocab_ids is vocab_ids
    assert whole.vocab_ids is None
    subject.same(runner.forward(chain(tokens)), whole.forward(chain(tokens))[:, vocab_ids])


def test_the_last_slot_can_be_used(subject):
    runner = subject.build()
    text = np.random.default_rng(2).integers(0, TINY.vocab_size, runner.capacity).tolist()
    runner.forward(chain(text[:-1]))
    subject.assert_right(runner.forward(chain(text[-1:], start=runner.capacity - 1)), text)


@pytest.mark.parametrize(
    ("start", "tokens", "sequence", "message"),
    [
        (CAPACITY - 2, [1, 2, 3], 0, rf"position {CAPACITY}: must be from 0 to {CAPACITY - 1}"),
        (0, [1, TINY.vocab_size], 0, r"token id 97: must be from 0 to 96"),
        (0, [-1], 0, r"token id -1: must be from 0 to 96"),
        (0, [1], 1, r"sequence 1: must be from 0 to 0"),
        (0, [], 0, r"a pass of 0 rows"),
    ],
)
def test_rows_outside_the_cache_are_refused_before_anything_is_written(subject, start, tokens, sequence, message):
    runner, text = subject.build(), list(range(10))
    runner.forward(chain(text))
    with pytest.raises(RequestError, match=message):
        runner.forward(chain(tokens, start=start, sequence=sequence))
    subject.assert_right(runner.forward(chain([11], start=10)), [*text, 11])


def test_an_ancestor_outside_the_cache_is_refused(subject):
    with pytest.raises(RequestError, match="ancestor slot"):
        subject.build().forward(replace(branch([1], prefix=0, first_slot=3, start=0), ancestors=np.array([[CAPACITY]])))
    with pytest.raises(RequestError, match="sees no slot"):
        subject.build().forward(replace(chain([1]), lengths=np.array([0])))


@pytest.mark.parametrize(("sources", "targets"), [([CAPACITY], [0]), ([0], [-1]), ([0, 1], [2])])
def test_impossible_moves_are_refused(subject, sources, targets):
    with pytest.raises(RequestError):
        subject.build().move_slots(0, sources, targets)


def paged(subject, *, num_sequences: int) -> PagedModel:
    runner = subject.build(num_sequences=num_sequences)
    if not isinstance(runner, PagedModel):
        pytest.skip("its cache has no blocks")
    return runner


def test_a_text_may_lie_in_any_blocks(subject, tokens):
    runner, text = paged(subject, num_sequences=2), [*tokens, *tokens[:20]]
    runner.set_blocks(1, [2, 0])
    subject.same(runner.forward(chain(text, sequence=1)), subject.build().forward(chain(text)))
    states = runner.read_states(1, 30, 35, layer_ids=range(subject.num_layers))
    runner.move_slots(1, [33], [34])
    runner.write_states(1, 30, states)
    more = subject.build().forward(chain([*text, 5]))[-1:]
    subject.same(runner.forward(chain([5], start=len(text), sequence=1)), more)


def test_sequences_share_a_block_and_go_on_in_their_own(subject):
    runner = paged(subject, num_sequences=3)
    stem, texts = [3, 1, 4, 1] * (runner.block_tokens // 4), {0: [5, 9], 2: [2, 6, 5]}
    runner.forward(chain(stem, sequence=1))
    stem_block = runner.num_blocks // 3  # the first of sequence 1
    for sequence, own in zip(texts, (0, runner.num_blocks - 1), strict=True):
        runner.set_blocks(sequence, [stem_block, own])
    rows = Rows.chains([(sequence, len(stem), text) for sequence, text in texts.items()])
    logits = runner.forward(rows)
    for first, text in ((0, texts[0]), (2, texts[2])):
        expected = subject.build().forward(chain([*stem, *text]))[len(stem) :]
        subject.same(logits[first : first + len(text)], expected)


def test_sequences_of_two_beginnings_take_turns_in_a_pass(subject, tokens):
    """Those of one beginning may be run side by side inside: whose logits are whose must not change by it."""
    runner, stems = paged(subject, num_sequences=6), (tokens[:32], tokens[8:])
    num_places = CAPACITY // runner.block_tokens
    for sequence, stem in enumerate(stems):
        runner.forward(chain(stem, sequence=4 + sequence), logit_rows=np.array([], np.int64))
    texts = [tokens[sequence : 2 * sequence + 1] for sequence in range(4)]
    for sequence in range(4):
        stem_block = (4 + sequence % 2) * num_places
        runner.set_blocks(sequence, [stem_block, sequence * num_places])
    rows = Rows.chains([(sequence, 32, text) for sequence, text in enumerate(texts)])
    together, first = runner.forward(rows), 0
    np.testing.assert_array_equal(runner.forward(rows, logit_rows=np.array([8, 2, 0])), together[[8, 2, 0]])
    for sequence, text in enumerate(texts):
        expected = subject.build().forward(chain([*stems[sequence % 2], *text]))[32:]
        subject.same(together[first : first + len(text)], expected)
        first += len(text)


def test_what_lies_beyond_the_blocks_of_a_sequence_is_refused(subject):
    runner = paged(subject, num_sequences=2)
    runner.set_blocks(0, [1])
    rows = chain([1], start=runner.block_tokens)
    for refused in (rows, replace(rows, slots=np.array([0]))):
        with pytest.raises(RequestError, match="beyond the blocks"):
            runner.forward(refused)
    with pytest.raises(RequestError, match="beyond the blocks"):
        runner.read_states(0, 0, runner.block_tokens + 1, layer_ids=[0])
    with pytest.raises(RequestError, match="beyond the blocks"):
        runner.move_slots(0, [0], [runner.block_tokens])
    for sequence, blocks in ((2, [0]), (0, [-1]), (0, [runner.num_blocks]), (0, [0] * (runner.num_blocks + 1))):
        with pytest.raises(RequestError):
            runner.set_blocks(sequence, blocks)
    runner.forward(chain([1]))


@pytest.mark.parametrize("option", ["num_sequences", "capacity"])
def test_an_empty_cache_is_refused(subject, option):
    with pytest.raises(ConfigError, match=f"{option}=0"):
        subject.build(**{option: 0})
