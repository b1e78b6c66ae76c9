"""Passes of fixed shape against the plain path, replayed from traces as they would be from CUDA graphs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated.recording import TracingRecorder

from forerun.core.errors import ConfigError, DeviceMemoryError
from forerun.core.rng import gumbel_argmax, stream_key
from forerun.core.rows import Rows
from forerun.core.selection import Choice, Selection
from forerun.engine.logits import LogitsProcessor
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.coupling import coupled_tokens
from forerun.models.config import DecoderConfig
from forerun.models.decoder_weights import fill_decoder
from forerun.models.device_runner import MAX_GRAPH_WIDTH, DeviceRunner
from forerun.models.graph_pool import EagerRecorder, GraphPool, is_out_of_memory
from forerun.models.layout import parameter_shapes
from forerun.models.packing import PackedLayout
from forerun.models.row_grid import RowGrid, padded_count
from forerun.models.torch_runner import TorchRunner

CONFIG = DecoderConfig(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6,
    max_len=256,
)  # fmt: skip
CAPACITY = 200


def weights(config):
    rng = np.random.default_rng(3)
    return {
        name: (rng.standard_normal(shape) * (1.5 / shape[-1] ** 0.5)).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


def pair(recorder=None, *, config=CONFIG, **options) -> tuple[DeviceRunner, TorchRunner]:
    """The runner under test and its slow twin, with one decoder."""
    decoder = fill_decoder(config, weights(config).__getitem__)
    options = {"num_sequences": 3, "capacity": CAPACITY} | options
    return DeviceRunner(decoder, recorder=recorder, **options), TorchRunner(decoder, **options)


def text(length, *, seed=0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length).tolist()


def choice(temperature: float, *, seed: int = 1, request: int = 0, **truncation) -> Choice:
    return Choice(temperature=temperature, seed=seed, request=request, **truncation)


def agree(device: DeviceRunner, twin: TorchRunner, rows: Rows, **options) -> None:
    np.testing.assert_allclose(device.forward(rows, **options), twin.forward(rows, **options), atol=2e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 9])
def test_a_recorded_pass_runs_on_new_inputs(window):
    """Other tokens, positions, lengths and sequences than those it was recorded with; verifications of each width."""
    recorder = TracingRecorder()
    device, twin = pair(recorder, config=replace(CONFIG, sliding_window=window))
    prompts = {0: text(50), 1: text(7, seed=1), 2: text(90, seed=2)}
    agree(device, twin, Rows.chains([(sequence, 0, prompt) for sequence, prompt in prompts.items()]))
    assert recorder.num_records == 0  # a long part of a prompt is run as it is
    starts = {sequence: len(prompt) for sequence, prompt in prompts.items()}
    for step, widths in enumerate([(3, 1, 2), (1, 3, 3), (2, 2, 3), (1, 1, 1), (1, 0, 1), (3, 3, 3)]):
        parts = [
            (sequence, starts[sequence], text(width, seed=10 * step + sequence))
            for sequence, width in enumerate(widths)
            if width
        ]
        agree(device, twin, Rows.chains(parts))
        for sequence, _, tokens in parts:
            starts[sequence] += len(tokens)
    # Width 3, then width 1; both of all sequences, within one span.
    assert recorder.num_records == 2


def test_trees_are_replayed_too():
    recorder = TracingRecorder()
    device, twin = pair(recorder, num_sequences=1)
    prompt = Rows.chains([(0, 0, text(40))])
    agree(device, twin, prompt)
    for seed in range(3):
        slots = 60 + np.arange(4) + seed
        tree = Rows(
            sequences=np.zeros(4, np.int64),
            token_ids=np.array(text(4, seed=seed)),
            positions=40 + np.array([0, 1, 1, 2]),
            slots=slots,
            lengths=np.full(4, 40 - seed),
            ancestors=np.array([[0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 2, 3]]) + slots[0],
            num_ancestors=np.array([1, 2, 2, 3]),
        )
        agree(device, twin, tree)
    assert recorder.num_records == 1


@pytest.mark.parametrize("width", [3, MAX_GRAPH_WIDTH + 8])
@pytest.mark.parametrize("vocab_ids", [None, np.array([2, 3, 40, 41, 60])])
def test_tokens_are_those_that_the_logits_and_the_noise_give(width, vocab_ids):
    recorder = TracingRecorder()
    device, twin = pair(recorder, vocab_ids=vocab_ids)
    ids = np.arange(CONFIG.vocab_size) if vocab_ids is None else vocab_ids
    for start in (0, width):
        rows = Rows.chains([(0, start, text(width, seed=start)), (2, start, text(width, seed=start + 1))])
        wanted = np.array([0, width - 1, width, 2 * width - 1])
        selection = Selection.of_positions([(choice(0.0, seed=7), 5, 2), (choice(0.8, seed=7, request=3), 5, 2)])
        chosen = device.launch(rows, selection, logit_rows=wanted).result()
        logits = twin.forward(rows, logit_rows=wanted)
        noisy = [
            gumbel_argmax(logits[2 + place] / np.float32(0.8), ids=ids, seed=7, request=3, position=5 + place)
            for place in range(2)
        ]
        assert chosen.tolist() == ids[[*logits[:2].argmax(axis=1), *noisy]].tolist()
    assert (recorder.num_records, recorder.num_runs) == ((1, 0) if width <= MAX_GRAPH_WIDTH else (0, 2))


def test_greedy_and_noisy_passes_are_recorded_apart():
    recorder = TracingRecorder()
    device, _ = pair(recorder)
    for start, temperature in enumerate([0.0, 1.0, 0.0, 0.5]):
        device.launch(
            Rows.chains([(0, start, [1])]), Selection.of_positions([(choice(temperature), start, 1)])
        ).result()
    assert recorder.num_records == 2


@pytest.mark.parametrize("width", [2, MAX_GRAPH_WIDTH + 8])
def test_truncated_choices_are_those_of_the_host(width):
    """One pass with requests that cut differently, and one that does not; then on other numbers."""
    recorder = TracingRecorder()
    device, twin = pair(recorder)
    params = [
        SamplingParams(temperature=1.2, top_k=7, top_p=0.8, seed=5),
        SamplingParams(temperature=0.9, min_p=0.05, seed=6),
        SamplingParams(temperature=0, top_k=3),
    ]
    for start in (0, width):
        rows = Rows.chains([(place, start, text(width, seed=start + place)) for place in range(3)])
        logits = twin.forward(rows)
        parts = [
            (
                choice(some.temperature, seed=some.seed or 0, top_k=some.top_k, top_p=some.top_p, min_p=some.min_p),
                9,
                width,
            )
            for some in params
        ]
        chosen = device.launch(rows, Selection.of_positions(parts)).result().reshape(3, width)
        for some, tokens, own in zip(params, chosen, logits.reshape(3, width, -1), strict=True):
            laws = LogitsProcessor(some, [], frozenset(), CONFIG.vocab_size).laws(own, [], [0] * (width - 1))
            expected = coupled_tokens(laws, seed=some.seed or 0, request=0, first_position=9)
            assert tokens.tolist() == list(expected)
    assert recorder.num_records == (width <= MAX_GRAPH_WIDTH)


def test_flex_attention_gives_the_same_logits():
    _, twin = pair()
    device = DeviceRunner(
        fill_decoder(CONFIG, weights(CONFIG).__getitem__), num_sequences=2, capacity=CAPACITY, backend="flex"
    )
    agree(device, twin, Rows.chains([(0, 0, text(5)), (1, 0, text(9))]))
    agree(device, twin, Rows.chains([(1, 9, text(3))]))


def test_reading_leaves_keys_and_values_and_no_logits():
    device, twin = pair()
    rows = Rows.chains([(1, 0, text(20))])
    device.read(rows).result()
    twin.forward(rows)
    agree(device, twin, Rows.chains([(1, 20, [4, 5])]))


def test_broken_numbers_are_told_as_such():
    device, _ = pair()
    device.cache.values[0].fill_(torch.nan)
    rows = Rows.chains([(0, 1, [3])])
    assert device.launch(rows, Selection.of_positions([(choice(0.0), 2, 1)])).result().tolist() == [-1]


def test_a_recorder_of_another_device_is_refused():
    decoder = fill_decoder(CONFIG, weights(CONFIG).__getitem__)
    with pytest.raises(ConfigError, match="put both on one device"):
        DeviceRunner(decoder, recorder=EagerRecorder(torch.device("meta")))


def test_a_pool_keeps_what_was_used_last():
    recorder = TracingRecorder()
    pool = GraphPool(recorder, max_graphs=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        result = pool.launch(key, lambda words: 2 * words, np.array([1, len(key)])).result()
        assert result.tolist() == [2, 2]
    assert recorder.num_records == 4  # a, b, c (b goes), b again (c goes)
    assert len(pool) == 2


def test_memory_that_is_short_is_told_by_the_driver_and_by_cublas_in_words():
    assert is_out_of_memory(torch.OutOfMemoryError("made up"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    ended = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    ended.__context__ = torch.OutOfMemoryError("made up")
    assert is_out_of_memory(ended)


def test_other_errors_of_a_pass_are_passed_on_and_not_tried_again():
    calls: list[int] = []

    def broken(_words):
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        GraphPool(EagerRecorder(torch.device("cpu"))).run(broken, np.ones(1, np.int64))
    assert len(calls) == 1


class Forgetful(EagerRecorder):
    """A device whose memory holds so many rows of numbers, and no recorded pass beside a large one."""

    def __init__(self, most: int):
        super().__init__(torch.device("cpu"))
        self.most, self.num_kept = most, 0

    def record(self, function, inputs):
        if inputs.size > self.most - self.num_kept:
            self.num_kept = 0  # as when what is recorded is dropped
            raise torch.OutOfMemoryError("made up")
        self.num_kept += inputs.size
        return super().record(function, inputs)


def test_what_is_recorded_goes_where_memory_is_short_and_then_the_pass_is_refused():
    pool = GraphPool(Forgetful(10))
    for size in (6, 7):  # the second fits once the first is gone
        assert pool.launch(size, lambda words: 2 * words, np.ones(size, np.int64)).result().sum() == 2 * size
    assert len(pool) == 1
    with pytest.raises(DeviceMemoryError, match=r"does not fit into the memory of cpu.* set a smaller kv_cache_bytes"):
        pool.launch("large", lambda words: words, np.ones(11, np.int64))


def test_results_of_a_launch_outlive_the_next_one():
    pool = GraphPool(EagerRecorder(torch.device("cpu")))
    first = pool.launch("double", lambda words: 2 * words, np.array([1]))
    second = pool.launch("double", lambda words: 2 * words, np.array([5]))
    assert (first.result().tolist(), second.result().tolist()) == ([2], [10])


def test_packed_arrays_come_back_with_their_bits():
    arrays = {"a": np.arange(6).reshape(2, 3), "t": np.array([0.7, -1e-300]), "b": np.array([-1])}
    layout = PackedLayout({name: array.shape for name, array in arrays.items()}, floats=frozenset({"t"}))
    words = layout.pack(arrays)
    assert (words.dtype, len(words)) == (np.int64, layout.size)
    for name, tensor in layout.unpack(torch.from_numpy(words)).items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])


def test_padding_keeps_shapes_few():
    assert [padded_count(count) for count in (1, 2, 3, 4, 5, 9)] == [1, 2, 4, 4, 8, 16]
    assert padded_count(3, most=3) == 3
    assert padded_count(3, least=128) == 128
    shapes = {
        RowGrid.of(
            Rows.chains([(0, start, [1] * width)]), num_sequences=4, num_slots=4096, spare_slot=4096, is_padded=True
        ).shape
        for start in range(0, 500, 7)
        for width in range(1, 9)
    }
    assert len(shapes) == 8 * 3  # widths, and spans of 128, 256 and 512


def test_cells_without_a_row_write_to_the_spare_slot_and_see_nothing():
    rows = Rows.chains([(1, 4, [7, 8]), (2, 0, [9])])
    grid = RowGrid.of(rows, num_sequences=4, num_slots=64, spare_slot=64, is_padded=True)
    assert grid.arrays["slots"].tolist() == [[64, 64], [4, 5], [0, 64], [64, 64]]
    assert grid.arrays["lengths"].tolist() == [0, 5, 1, 0]
    assert grid.arrays["visible"].sum(axis=2).tolist() == [[0, 0], [0, 1], [0, 0], [0, 0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_replay_what_the_cpu_computes():
    from forerun.models.cuda_recorder import CudaGraphRecorder

    device = torch.device("cuda", 0)
    decoder = fill_decoder(CONFIG, weights(CONFIG).__getitem__, device=device)
    runner = DeviceRunner(decoder, num_sequences=3, capacity=CAPACITY, recorder=CudaGraphRecorder(device))
    _, twin = pair()
    start = 0
    for seed, width in enumerate((40, 1, 1, 3, 1, 3, 2, 1)):
        rows = Rows.chains([(0, start, text(width, seed=seed)), (2, start, text(width, seed=seed + 50))])
        np.testing.assert_allclose(runner.forward(rows), twin.forward(rows), atol=2e-3, rtol=0)
        start += width
    selection = Selection.of_positions([(choice(0.9, seed=3), start, 1)])
    logits = twin.forward(Rows.chains([(0, start, [5])]))[0]
    chosen = runner.launch(Rows.chains([(0, start, [5])]), selection).result()
    expected = gumbel_argmax(logits / np.float32(0.9), ids=None, seed=3, request=0, position=start)
    assert stream_key(3, 0, start, "coupling") > 0
    assert chosen.tolist() == [expected]
