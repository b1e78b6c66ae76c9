"""From a configuration to a speculator: which draft, in which process, on which core."""

import warnings
from collections.abc import Sequence
from functools import cached_property

import torch

from forerun.core.dtype_choice import DtypeName
from forerun.core.env import cpu_info
from forerun.core.errors import ConfigError, DrafterError, ModelLoadError, VocabMismatchError
from forerun.core.features import FeatureSource
from forerun.core.protocols import LanguageModel
from forerun.engine.config import EngineConfig, Method
from forerun.engine.request import Request
from forerun.engine.speculative.choice import DraftChoice
from forerun.engine.speculative.controller import (
    Acceptance,
    AdaptiveController,
    BranchBudget,
    Controller,
    FixedController,
)
from forerun.engine.speculative.device_drafter import DeviceSequentialSpeculator, DeviceSsdSpeculator
from forerun.engine.speculative.draft_replicas import RoundDraft
from forerun.engine.speculative.draft_round import RoundModel
from forerun.engine.speculative.drafter_process import DrafterProcess
from forerun.engine.speculative.drafter_restart import DrafterRestarts, RestartConfig
from forerun.engine.speculative.fallback_length import AdaptiveFallbackLength, OneLess
from forerun.engine.speculative.load import Load
from forerun.engine.speculative.plain import NoSpeculator
from forerun.engine.speculative.round_draft import RoundSizes, load_round_draft
from forerun.engine.speculative.sequential import NgramSpeculator, SequentialSpeculator
from forerun.engine.speculative.speculator import Speculator
from forerun.engine.speculative.ssd import SsdSpeculator
from forerun.engine.speculative.target_states import TargetStates
from forerun.engine.speculative.ways import Way, WayChooser
from forerun.engine.speculative.worker import WorkerConfig
from forerun.models.checkpoint import Checkpoint
from forerun.models.draft import Draft, load_draft
from forerun.models.draft_runner import build_draft
from forerun.models.weight_format import fitting_format

DEFAULT_NUM_SPECULATIVE_TOKENS = 4
DEFAULT_BRANCH_BUDGET = 20
MAX_ADAPTIVE_TOKENS = 8
MAX_BRANCHES = 32
_READY_TIMEOUT_S = 120.0


class SpeculatorFactory:
    """Holds what speculation needs over the life of an engine: a draft model, or a drafter's process, or both.

    Args:
        config: The engine's.
        checkpoint: The target.
        dtype: Kind of weights of the target; a draft's are int8 where that is free to be chosen, for its law need only
            be near.
        capacity: Slots per sequence.
        cores: To pin to; the drafter's process takes the last.
    """

    def __init__(
        self, config: EngineConfig, checkpoint: Checkpoint, *, dtype: DtypeName, capacity: int, cores: Sequence[int]
    ) -> None:
        self._config, self._checkpoint, self._capacity, self._cores = config, checkpoint, capacity, tuple(cores)
        self._dtype: DtypeName = dtype
        self._draft_name = self._resolve_draft()
        self._process: DrafterProcess | None = None
        self._draft_model: LanguageModel | RoundModel | None = None
        self._device_draft: RoundDraft | None = None
        self._ways: list[Way] = []
        self._chooser: WayChooser | None = None
        self._acceptance = Acceptance(MAX_ADAPTIVE_TOKENS)
        self._methods = self._resolve_methods()
        if "ssd" in self._methods and not config.runs_on_device:
            self._process = DrafterProcess(self._worker_config(cores))

    @property
    def target_cores(self) -> tuple[int, ...]:
        """Cores to pin the target to while it loads; empty to leave it where it is."""
        is_pinned = self._config.cores is not None or self._process is not None
        return self._cores[: self._config.num_threads] if is_pinned else ()

    def wait_until_ready(self, target: LanguageModel) -> None:
        """Load the draft, wait for the process that does, or both.

        Args:
            target: The target's runner, whose keys and values the draft may read.
        """
        # What this process loads itself comes first: the drafter's process loads at the same time.
        ways = [self._way(method, target) for method in self._methods if method != "ssd" or self._config.runs_on_device]
        if self._process is not None:
            try:
                self._process.wait_until_ready(_READY_TIMEOUT_S)
                ways.insert(0, self._way("ssd", target))
            except DrafterError as error:
                self._process.close()
                self._process = None
                warnings.warn(f"{error}; decoding goes on without it", RuntimeWarning, stacklevel=3)
        self._ways = ways or [self._way("none", target)]
        draft = self._draft_model
        if draft is not None and len(self._ways) > 1:
            self._ways.sort(key=lambda way: way.promised_round_s(target, draft))
        self._chooser = WayChooser(self._ways)

    def way_for_call(self, load: Load) -> Way:
        """Return the way to decode such a load, with the process's threads and cores set for it."""
        assert self._chooser is not None, "wait_until_ready() comes first"
        way = self._chooser.choose(load.at_most(self._config.max_num_seqs))
        way.enter()
        return way

    def every_way(self, target: LanguageModel) -> tuple[Way, ...]:
        """Return a way for each method that is ready, decoding without a draft always among them.

        Args:
            target: The target's runner.
        """
        if all(way.method != "none" for way in self._ways):
            return (*self._ways, self._way("none", target))
        return tuple(self._ways)

    @property
    def device_drafts(self) -> tuple[RoundModel, ...]:
        """The draft model, on each device that it runs on; none of one whose passes have any shape."""
        return () if self._device_draft is None else self._device_draft.runners

    def close(self) -> None:
        """Release the draft, which may still prepare for an outcome that nobody waits for, and end the process."""
        for draft in self.device_drafts:
            draft.recorder.finish()
        for way in self._ways:
            way.speculator.close()
        if not self._ways and self._process is not None:
            self._process.close()

    def _resolve_methods(self) -> list[Method]:
        """Return the methods to have ready, the one to begin with first."""
        method, name = self._config.method, self._draft_name
        if method == "none" or (method == "auto" and name is None):
            return ["none"]
        if name is None:
            raise ConfigError(f'method="{method}": needs a draft; set draft, or method="none" to decode without one')
        if method == "ssd" and name == "ngram":
            raise ConfigError('method="ssd", draft="ngram": look-up costs nothing to hide; use method="sequential"')
        if name == "ngram" and self._config.draft_data_parallel > 1:
            raise ConfigError(
                f"draft_data_parallel={self._config.draft_data_parallel}: look-up in the context, the draft here, has "
                "no copies; name a draft model, or leave it out"
            )
        if method == "auto":
            has_core = self._config.runs_on_device or len(self._cores) > self._config.num_threads
            return ["ssd", "sequential"] if name != "ngram" and has_core else ["sequential"]
        return [method]

    def _way(self, method: Method, target: LanguageModel) -> Way:
        """Make a method ready. Beside SSD, the others get the drafter's core as one more thread of the target."""
        speculator: Speculator
        num_threads = self._config.num_threads + (self._process is not None and method != "ssd")
        if method == "none":
            speculator = NoSpeculator()
        elif self._config.runs_on_device and self._draft_name != "ngram":
            speculator = self._device_speculator(method, target)
        elif method == "ssd":
            speculator = self._ssd(target)
        else:
            speculator = NgramSpeculator() if self._draft_name == "ngram" else self._sequential(target)
        return Way(
            method=method,
            speculator=speculator,
            controller=self._controller(method),
            num_threads=num_threads,
            pinned_to=self._cores[:num_threads] if self.target_cores else (),
            num_cores=num_threads + (method == "ssd"),
        )

    def _controller(self, method: Method) -> Controller:
        fixed = self._config.speculative.num_speculative_tokens
        if method == "none":
            return FixedController(0)
        if fixed is not None:
            return FixedController(fixed)
        return AdaptiveController(
            self._acceptance,
            least_tokens=0 if self._config.method == "auto" else 1,
            max_tokens=MAX_ADAPTIVE_TOKENS,
            initial=DEFAULT_NUM_SPECULATIVE_TOKENS,
        )

    def _ssd(self, target: LanguageModel) -> SsdSpeculator:
        assert self._process is not None
        speculative = self._config.speculative
        return SsdSpeculator(
            self._process,
            speculative,
            num_speculative_tokens=speculative.num_speculative_tokens or DEFAULT_NUM_SPECULATIVE_TOKENS,
            branch_budget=self._branch_budget(),
            fallback_length=AdaptiveFallbackLength(MAX_ADAPTIVE_TOKENS)
            if speculative.num_speculative_tokens is None
            else OneLess(),
            states=self._states(target),
            restarts=DrafterRestarts(
                lambda: DrafterProcess(self._worker_config(self._cores)),
                RestartConfig(max_tries=speculative.drafter_restarts, timeout_s=_READY_TIMEOUT_S),
            ),
        )

    @cached_property
    def _draft(self) -> Draft:
        assert self._draft_name is not None
        return load_draft(self._draft_name, self._checkpoint)

    def _draft_dtype(self, draft: Draft) -> DtypeName:
        window = draft.config.sliding_window
        is_free = self._config.dtype == "auto" and cpu_info().has_int8_dot and not self._config.runs_on_device
        if is_free and (window is None or window >= self._capacity):
            return "int8"
        return fitting_format(draft.config, self._dtype, torch.device("cpu"))

    def _states(self, target: LanguageModel) -> TargetStates | None:
        """Return what the draft reads of the target, if it does."""
        head, layer_ids = self._draft.eagle3, self._draft.state_layer_ids
        if head is None:
            return TargetStates.keys_and_values(target, layer_ids=layer_ids) if layer_ids else None
        return TargetStates.features(self._feature_source(target), layer_ids=head.layer_ids)

    def _feature_source(self, target: LanguageModel) -> FeatureSource:
        """Return the target, which a head reads the hidden states of; refuse one that keeps none."""
        if isinstance(target, FeatureSource):
            return target
        raise ConfigError(
            f"draft={self._draft_name!r}: an EAGLE-3 head reads hidden states, and this kind of target does not keep "
            "them; choose another draft"
        )

    def _state_entry(self) -> tuple[int, ...]:
        """Return the shape of what the draft reads of each position of the target."""
        head, model = self._draft.eagle3, self._checkpoint.config
        if head is not None:
            return (len(head.layer_ids), head.target_hidden_size)
        num_layers = len(self._draft.state_layer_ids)
        return (num_layers, 2, model.num_kv_heads, model.head_dim) if num_layers else (0,)

    def _branch_budget(self) -> BranchBudget:
        fixed = self._config.speculative.branch_budget
        if fixed is None:
            return BranchBudget(DEFAULT_BRANCH_BUDGET, least=4, most=MAX_BRANCHES)
        return BranchBudget(fixed, least=fixed, most=fixed)

    def _resolve_draft(self) -> str | None:
        """Return the draft's name; where the default draft does not fit the target, n-gram look-up or a member."""
        if self._config.draft != "default" or self._config.target == "default":
            return self._config.draft
        if self._checkpoint.ensemble is not None:
            return "self"
        try:
            load_draft("default", self._checkpoint)
        except (VocabMismatchError, ModelLoadError):
            return "ngram"
        return "default"

    def _sequential(self, target: LanguageModel) -> SequentialSpeculator:
        draft = self._draft
        self._draft_model = model = build_draft(
            draft,
            dtype=self._draft_dtype(draft),
            num_sequences=self._config.max_num_seqs,
            capacity=self._capacity,
            embedding_of=target,
        )

        def make_choice(request: Request) -> DraftChoice:
            return DraftChoice(
                request.params,
                self._config.speculative,
                request.prompt_ids,
                self._checkpoint.eos_ids,
                vocab_size=self._checkpoint.config.vocab_size,
                vocab_ids=draft.vocab_ids,
                request_number=request.number,
                constraint=request.processor.fork_constraint(),
            )

        return SequentialSpeculator(model, make_choice, states=self._states(target))

    def _device_speculator(self, method: Method, target: LanguageModel) -> Speculator:
        speculative = self._config.speculative
        num_outcomes = speculative.branch_budget or DEFAULT_BRANCH_BUDGET * self._config.draft_data_parallel
        if self._device_draft is None:
            if self._draft.eagle3 is not None:
                self._feature_source(target)
            self._device_draft = load_round_draft(
                self._draft,
                target,
                self._config,
                sizes=RoundSizes(
                    num_outcomes=num_outcomes,
                    num_tokens=speculative.num_speculative_tokens or MAX_ADAPTIVE_TOKENS,
                    capacity=self._capacity,
                    vocab_size=self._checkpoint.config.vocab_size,
                ),
                dtype=self._dtype,
            )
            self._draft_model = self._device_draft.runners[0]
        if method == "sequential":
            return DeviceSequentialSpeculator(self._device_draft)
        return DeviceSsdSpeculator(
            self._device_draft,
            num_outcomes=num_outcomes,
            depth=speculative.num_speculative_tokens or DEFAULT_NUM_SPECULATIVE_TOKENS,
            fallback=speculative.fallback,
            fallback_length=AdaptiveFallbackLength(MAX_ADAPTIVE_TOKENS, is_whole=True)
            if speculative.num_speculative_tokens is None
            else None,
        )

    def _worker_config(self, cores: Sequence[int]) -> WorkerConfig:
        speculative, config, model = self._config.speculative, self._config, self._checkpoint.config
        assert self._draft_name is not None
        draft = self._draft
        sends_laws = speculative.verification == "rejection"
        is_pinnable = len(cores) > config.num_threads
        return WorkerConfig(
            target=config.target,
            draft=self._draft_name,
            dtype=self._draft_dtype(draft),
            capacity=self._capacity,
            core=cores[config.num_threads] if is_pinnable else None,
            num_requests=config.max_num_seqs,
            max_branches=speculative.branch_budget or MAX_BRANCHES,
            max_depth=1 + (speculative.num_speculative_tokens or MAX_ADAPTIVE_TOKENS),
            law_width=model.vocab_size if sends_laws else 0,
            vocab_size=model.vocab_size,
            eos_ids=tuple(sorted(self._checkpoint.eos_ids)),
            state_entry=self._state_entry(),
            states_are_wide=draft.eagle3 is not None,
            speculative=speculative,
        )
