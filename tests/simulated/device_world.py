"""Tiny decoders, heads and drafts on a device, and their decoding: the engine's device path in small.

A place says where: by default on the CPU, where passes run as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from forerun.engine.config import SpeculativeConfig, Verification
from forerun.engine.core import EngineCore
from forerun.engine.metrics import DecodeCounters
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.choice import DraftChoice
from forerun.engine.speculative.controller import FixedController
from forerun.engine.speculative.device_draft import DeviceDraft
from forerun.engine.speculative.device_drafter import DeviceSequentialSpeculator, DeviceSsdSpeculator
from forerun.engine.speculative.draft_replicas import DraftReplicas
from forerun.engine.speculative.sequential import SequentialSpeculator
from forerun.engine.speculative.target_states import TargetStates
from forerun.models.config import DecoderConfig
from forerun.models.decoder import Decoder
from forerun.models.decoder_weights import fill_decoder
from forerun.models.device_head import DeviceHead
from forerun.models.device_runner import DeviceRunner, LentLayers
from forerun.models.draft_laws import DraftLaws
from forerun.models.eagle3 import Eagle3Config
from forerun.models.eagle3_runner import Eagle3Runner, fill_head
from forerun.models.graph_pool import EagerRecorder, Recorder
from forerun.models.layout import parameter_shapes
from forerun.models.torch_runner import TorchRunner
from simulated.decoding import World
from simulated.heads import random_head_weights
from simulated.models import markov_law

CONFIG = DecoderConfig(
    vocab_size=19, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    max_len=64,
)  # fmt: skip
CAPACITY, K = 56, 3
WORLD = World(
    target=markov_law(CONFIG.vocab_size, seed=0),
    draft=markov_law(CONFIG.vocab_size, seed=0),
    vocab_size=CONFIG.vocab_size,
    eos_ids=(0,),
    capacity=CAPACITY,
)
PROMPTS = ([3, 1, 4, 1, 5, 9], [2, 7], [1, 8, 2, 8, 1, 8, 2, 8, 4, 5], [9, 9, 9])
PARAMS = [
    SamplingParams(temperature=0, max_tokens=16, ignore_eos=True),
    SamplingParams(temperature=0.9, max_tokens=11, seed=5),
    SamplingParams(temperature=0.7, max_tokens=18, seed=6, ignore_eos=True),
    SamplingParams(temperature=1.2, max_tokens=9, seed=7),
]
TRUNCATED = [
    SamplingParams(temperature=1.1, top_k=6, max_tokens=14, seed=1, ignore_eos=True),
    SamplingParams(temperature=0.9, top_p=0.7, min_p=0.01, max_tokens=12, seed=2),
    SamplingParams(temperature=0, max_tokens=10, top_k=3),
    SamplingParams(temperature=1.3, min_p=0.1, top_k=9, max_tokens=12, seed=4),
]
SHAPED = [*PARAMS[:3], SamplingParams(temperature=1.0, top_p=0.9, logprobs=1, max_tokens=8, seed=3)]
SETS = {"plain": PARAMS, "shaped": SHAPED, "truncated": TRUNCATED}


@dataclass(frozen=True)
class Place:
    """Where models run, and what launches their passes.

    Attributes:
        device: Of the weights.
        new_recorder: Makes a recorder, for the target or for a draft.
        share: Told of memory of which a draft reads parts while the target writes others.
    """

    device: torch.device
    new_recorder: Callable[[], Recorder]
    share: Callable[..., None] = lambda *_tensors: None


_CPU = torch.device("cpu")
EAGER = Place(_CPU, lambda: EagerRecorder(_CPU))


def new_target(place: Place = EAGER) -> DeviceRunner:
    return DeviceRunner(decoder(device=place.device), num_sequences=2, capacity=CAPACITY, recorder=place.new_recorder())


def new_laws(target, vocab_ids=None) -> DraftLaws:
    """Room for the laws of drafts, which a target on a device verifies by; it may not bring logits to the host then."""
    on_device = isinstance(target, DeviceRunner)
    laws = DraftLaws(
        num_sequences=2, num_places=K, vocab_ids=vocab_ids, vocab_size=CONFIG.vocab_size,
        recorder=target.recorder if on_device else EAGER.new_recorder(),
    )  # fmt: skip
    if on_device:
        target.verify_by(laws)
        refuse_logits(target)
    return laws


def refuse(*_args, **_options):
    raise AssertionError("asked for where it is not needed")


def refuse_logits(target: DeviceRunner) -> None:
    """Let a target be asked for tokens only."""
    launch = target.launch
    target.launch = lambda rows, selection=None, **options: launch(rows, selection or refuse(), **options)


def decoder(*, noise: float = 0.0, device: torch.device = _CPU) -> Decoder:
    """The same weights, or some near them."""
    rng, other = np.random.default_rng(8), np.random.default_rng(9)
    weights = {
        name: ((rng.standard_normal(shape) + noise * other.standard_normal(shape)) * (1.5 / shape[-1] ** 0.5)).astype(
            np.float32
        )
        for name, shape in parameter_shapes(CONFIG).items()
    }
    return fill_decoder(CONFIG, weights.__getitem__, device=device)


def decode(target, speculator, params, *, num_tokens=K, verification: Verification = "coupled", prompts=PROMPTS):
    """Return outputs and counters of all prompts, two side by side."""
    requests = WORLD.requests(prompts, [replace(some, seed=some.seed or 0) for some in params])
    counters = DecodeCounters()
    core = EngineCore(target, verification=verification, counters=counters)
    for _ in core.run(requests, speculator, FixedController(num_tokens)):
        pass
    return [(request.output_ids, request.logprobs, request.finish_reason) for request in requests], counters


def speculator(
    method: str, *, noise: float, vocab_ids=None, laws: DraftLaws | None = None, num_copies: int = 1,
    num_outcomes: int = 6, place: Place = EAGER,
):  # fmt: skip
    """Drafts by shared noise, or drawn from laws that are then handed over."""
    num_slots = -(-num_outcomes // num_copies) * K
    runners = [
        DeviceRunner(
            decoder(noise=noise, device=place.device), num_sequences=2, capacity=CAPACITY, num_tree_slots=num_slots,
            vocab_ids=vocab_ids, recorder=place.new_recorder(),
        )
        for _ in range(num_copies)
    ]  # fmt: skip
    drafts = [DeviceDraft(runner, laws=laws) for runner in runners]
    draft = drafts[0] if num_copies == 1 else DraftReplicas(drafts)
    if method == "sequential":
        return DeviceSequentialSpeculator(draft)
    return DeviceSsdSpeculator(draft, num_outcomes=num_outcomes, depth=2, fallback=method)


def head_speculator(
    method: str, target, *, verification: Verification = "coupled", num_copies: int = 1, place: Place = EAGER
):
    """A head with random weights, which reads the hidden states of a target."""
    config = Eagle3Config(
        layer=replace(CONFIG, num_layers=1),
        layer_ids=(0, 1),
        target_hidden_size=CONFIG.hidden_size,
        draft_vocab_size=CONFIG.vocab_size,
    )
    head = fill_head(config, random_head_weights(config).__getitem__, dtype=torch.float32, device=place.device)
    if method == "plain":
        speculative = SpeculativeConfig(copy_from_context=False, verification=verification)
        return SequentialSpeculator(
            Eagle3Runner(head, num_sequences=2, capacity=CAPACITY),
            lambda request: DraftChoice(
                request.params, speculative, request.prompt_ids, frozenset((0,)), vocab_size=CONFIG.vocab_size,
                vocab_ids=None, request_number=request.number,
            ),
            states=TargetStates.features(target, layer_ids=config.layer_ids),
        )  # fmt: skip
    target.keep_features(config.layer_ids)

    def runner() -> DeviceHead:
        recorder = place.new_recorder()
        return DeviceHead(head, num_sequences=2, capacity=CAPACITY, num_tree_slots=6 * K, recorder=recorder)

    laws = new_laws(target) if verification == "rejection" else None
    if method == "checked":
        draft = CheckedDraft(runner(), lender=target)
        draft.fresh = lambda: DeviceDraft(runner(), lender=target)
        return DeviceSsdSpeculator(draft, num_outcomes=6, depth=2, fallback="neural")
    drafts = [DeviceDraft(runner(), laws=laws, lender=target) for _ in range(num_copies)]
    draft = drafts[0] if num_copies == 1 else DraftReplicas(drafts)
    if method == "sequential":
        return DeviceSequentialSpeculator(draft)
    return DeviceSsdSpeculator(draft, num_outcomes=6, depth=2, fallback=method)


class CheckedDraft(DeviceDraft):
    """A draft whose preparations are those of one that has read nothing before."""

    fresh: Callable[[], DeviceDraft]

    def prepare(self, requests, speculations, **options):
        pending = super().prepare(requests, speculations, **options)
        other = self.fresh()
        for request in requests:
            other.start(request, is_ahead=True)
        again = other.prepare(requests, speculations, **options).result()
        for request in requests:
            np.testing.assert_array_equal(pending.result()[request.sequence], again[request.sequence])
        return pending


LAST_LAYER = replace(CONFIG, num_layers=1)


def last_layer_decoder(*, device: torch.device = _CPU) -> Decoder:
    """A draft of one layer, the target's last, with its embedding and head."""
    target = decoder(device=device)
    draft = Decoder(LAST_LAYER).to(device)
    draft.load_state_dict(
        {
            name.replace("layers.1.", "layers.0."): weight
            for name, weight in target.state_dict().items()
            if "layers.0." not in name
        }
    )
    return draft


def state_speculator(method: str, target, *, lends: bool = True, place: Place = EAGER):
    """The target's last layer as a draft, which reads keys and values of that layer, on the host or on the device."""
    if method == "plain":
        speculative = SpeculativeConfig(copy_from_context=False)
        return SequentialSpeculator(
            TorchRunner(last_layer_decoder(), num_sequences=2, capacity=CAPACITY),
            lambda request: DraftChoice(
                request.params, speculative, request.prompt_ids, frozenset((0,)), vocab_size=CONFIG.vocab_size,
                vocab_ids=None, request_number=request.number,
            ),
            states=TargetStates.keys_and_values(target, layer_ids=[1]),
        )  # fmt: skip
    lender = LentLayers.of(target, [1]) if lends else None

    def runner() -> DeviceRunner:
        return DeviceRunner(
            last_layer_decoder(device=place.device), num_sequences=2, capacity=CAPACITY, num_tree_slots=6 * K,
            recorder=place.new_recorder(),
        )  # fmt: skip

    if method == "sequential":
        return DeviceSequentialSpeculator(DeviceDraft(runner(), lender=lender))
    if method == "copies":
        copies = DraftReplicas([DeviceDraft(runner(), lender=lender) for _ in range(2)])
        return DeviceSsdSpeculator(copies, num_outcomes=6, depth=2, fallback="neural")
    draft = CheckedDraft(runner(), lender=lender)
    draft.fresh = lambda: DeviceDraft(runner(), lender=lender)
    return DeviceSsdSpeculator(draft, num_outcomes=6, depth=2, fallback="neural")


def proposals(speculator) -> list[list[tuple[int, ...]]]:
    """Return a list that every draft a speculator makes from now on is added to."""
    made: list[list[tuple[int, ...]]] = []
    own = speculator.speculate

    def speculate(requests, limits):
        speculations = own(requests, limits)
        made.append([speculation.token_ids for speculation in speculations])
        return speculations

    speculator.speculate = speculate
    return made


def all_counts(counters: DecodeCounters):
    return (counters.num_hits, counters.num_look_ups, counters.num_proposed, tuple(counters.accepted_counts))
