"""From a configuration to a speculator: which draft, in which process, on which core."""

import warnings
from collections.abc import Sequence

from forerun.core.dtype_choice import DtypeName
from forerun.core.errors import ConfigError, DrafterError, ModelLoadError, VocabMismatchError
from forerun.core.protocols import LanguageModel
from forerun.engine.config import EngineConfig
from forerun.engine.request import Request
from forerun.engine.speculative.choice import DraftChoice
from forerun.engine.speculative.controller import AdaptiveController, BranchBudget, Controller, FixedController
from forerun.engine.speculative.drafter_process import DrafterProcess
from forerun.engine.speculative.plain import NoSpeculator
from forerun.engine.speculative.sequential import NgramSpeculator, SequentialSpeculator
from forerun.engine.speculative.speculator import Speculator
from forerun.engine.speculative.ssd import SsdSpeculator
from forerun.engine.speculative.target_states import TargetStates
from forerun.engine.speculative.worker import WorkerConfig
from forerun.models.checkpoint import Checkpoint
from forerun.models.draft import Draft, load_draft
from forerun.models.runner import build_runner

DEFAULT_NUM_SPECULATIVE_TOKENS = 4
DEFAULT_BRANCH_BUDGET = 12
MAX_ADAPTIVE_TOKENS = 8
MAX_BRANCHES = 32
_READY_TIMEOUT_S = 120.0


class SpeculatorFactory:
    """Holds what speculation needs over the life of an engine: a draft model, or a drafter's process.

    Args:
        config: The engine's.
        checkpoint: The target.
        dtype: Kind of weights.
        capacity: Slots per sequence.
        cores: To pin to; the drafter's process takes the last.
    """

    def __init__(
        self, config: EngineConfig, checkpoint: Checkpoint, *, dtype: DtypeName, capacity: int, cores: Sequence[int]
    ) -> None:
        self._config, self._checkpoint, self._capacity = config, checkpoint, capacity
        self._dtype: DtypeName = dtype
        self._draft_name = self._resolve_draft()
        self._speculator: Speculator | None = None
        self._process: DrafterProcess | None = None
        self._controller: AdaptiveController | None = None
        method = config.method
        if method == "auto":
            method = "ssd" if len(cores) > config.num_threads else "sequential"
        if method != "none" and self._draft_name is None:
            if config.method != "auto":
                raise ConfigError(
                    f'method="{method}": needs a draft; set draft, or method="none" to decode without one'
                )
            method = "none"
        if method == "ssd" and self._draft_name == "ngram":
            if config.method == "ssd":
                raise ConfigError('method="ssd", draft="ngram": look-up costs nothing to hide; use method="sequential"')
            method = "sequential"
        self.method = method
        if method == "ssd":
            self._process = DrafterProcess(self._worker_config(cores))

    @property
    def uses_drafter_process(self) -> bool:
        """Whether a process beside this one drafts."""
        return self._process is not None

    @property
    def num_cores(self) -> int:
        """Cores in use, the drafter's included."""
        return self._config.num_threads + self.uses_drafter_process

    def wait_until_ready(self, target: LanguageModel) -> None:
        """Load the draft, or wait for the process that does.

        Args:
            target: The target's runner, whose keys and values the draft may read.
        """
        speculative = self._config.speculative
        if self._process is not None:
            try:
                self._process.wait_until_ready(_READY_TIMEOUT_S)
            except DrafterError as error:
                self._process.close()
                self._process, self.method, self._speculator = None, "none", NoSpeculator()
                warnings.warn(f"{error}; decoding goes on with the target alone", RuntimeWarning, stacklevel=3)
                return
            self._speculator = SsdSpeculator(
                self._process,
                speculative,
                num_speculative_tokens=speculative.num_speculative_tokens or DEFAULT_NUM_SPECULATIVE_TOKENS,
                branch_budget=self._branch_budget(),
                states=self._states(target),
            )
        elif self.method == "none":
            self._speculator = NoSpeculator()
        elif self._draft_name == "ngram":
            self._speculator = NgramSpeculator()
        else:
            self._speculator = self._sequential(target)

    def for_call(self) -> tuple[Speculator, Controller]:
        """Return the speculator and the controller of one call."""
        assert self._speculator is not None, "wait_until_ready() comes first"
        fixed = self._config.speculative.num_speculative_tokens
        if self.method == "none" or fixed is not None:
            return self._speculator, FixedController(fixed if fixed is not None and self.method != "none" else 0)
        if self._controller is None:
            self._controller = AdaptiveController(
                least_tokens=0 if self._config.method == "auto" else 1,
                max_tokens=MAX_ADAPTIVE_TOKENS,
                initial=DEFAULT_NUM_SPECULATIVE_TOKENS,
            )
        return self._speculator, self._controller

    def _draft(self) -> Draft:
        assert self._draft_name is not None
        return load_draft(self._draft_name, self._checkpoint)

    def _states(self, target: LanguageModel) -> TargetStates | None:
        layer_ids = self._draft().state_layer_ids
        return TargetStates(target, layer_ids=layer_ids) if layer_ids else None

    def _branch_budget(self) -> BranchBudget:
        fixed = self._config.speculative.branch_budget
        if fixed is None:
            return BranchBudget(DEFAULT_BRANCH_BUDGET, least=4, most=MAX_BRANCHES)
        return BranchBudget(fixed, least=fixed, most=fixed)

    def close(self) -> None:
        """Release the draft, and end the process."""
        if self._speculator is not None:
            self._speculator.close()
        elif self._process is not None:
            self._process.close()

    def _resolve_draft(self) -> str | None:
        """Return the draft's name; where the default draft does not fit the target, n-gram look-up."""
        if self._config.draft != "default" or self._config.target == "default":
            return self._config.draft
        try:
            load_draft("default", self._checkpoint)
        except (VocabMismatchError, ModelLoadError):
            return "ngram"
        return "default"

    def _sequential(self, target: LanguageModel) -> SequentialSpeculator:
        draft = self._draft()
        model = build_runner(
            draft.config,
            draft.tensor,
            dtype=self._dtype,
            num_sequences=self._config.max_num_seqs,
            capacity=self._capacity,
            vocab_ids=draft.vocab_ids,
            num_levels=1,
            embedding_of=target if draft.borrows_embedding else None,
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
            )

        return SequentialSpeculator(model, make_choice, states=self._states(target))

    def _worker_config(self, cores: Sequence[int]) -> WorkerConfig:
        speculative, config, model = self._config.speculative, self._config, self._checkpoint.config
        assert self._draft_name is not None
        sends_laws = speculative.verification == "rejection"
        is_pinnable = len(cores) > config.num_threads
        return WorkerConfig(
            target=config.target,
            draft=self._draft_name,
            dtype=self._dtype,
            capacity=self._capacity,
            core=cores[config.num_threads] if is_pinnable else None,
            num_requests=config.max_num_seqs,
            max_branches=speculative.branch_budget or MAX_BRANCHES,
            max_depth=1 + (speculative.num_speculative_tokens or MAX_ADAPTIVE_TOKENS),
            law_width=model.vocab_size if sends_laws else 0,
            vocab_size=model.vocab_size,
            eos_ids=tuple(sorted(self._checkpoint.eos_ids)),
            num_state_layers=len(self._draft().state_layer_ids),
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            speculative=speculative,
        )
