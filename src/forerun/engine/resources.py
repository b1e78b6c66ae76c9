"""What an engine holds over its life: models, tokenizer, ways to decode; and how a request is made for them."""

import secrets
from collections.abc import Sequence
from dataclasses import replace

import torch

from forerun.core.dtype_choice import DtypeName, choose_dtype
from forerun.core.env import available_cores, cpu_info, pin_process
from forerun.core.errors import ConfigError, DeviceMemoryError, RequestError
from forerun.core.memory import release_free_memory
from forerun.core.protocols import LanguageModel
from forerun.core.rows import Rows
from forerun.engine.config import EngineConfig
from forerun.engine.constraint_grammar import GrammarCompiler
from forerun.engine.logits import LogitsProcessor
from forerun.engine.request import Request
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculation import SpeculatorFactory
from forerun.engine.speculative.load import Load
from forerun.engine.speculative.ways import Way
from forerun.engine.stop import OutputTracker
from forerun.models.device import DeviceOptions, recorder_for
from forerun.models.device_runner import DeviceRunner
from forerun.models.graph_pool import GraphPool, is_out_of_memory
from forerun.models.launched_share import Launch, LaunchedModel, join_launch
from forerun.models.leading_runner import LeadingRunner
from forerun.models.load import load_checkpoint
from forerun.models.runner import build_target
from forerun.models.share_process import ShareConfig, SharedModel
from forerun.models.tokenizer import Tokenizer

_ROUNDS_PER_REQUEST = 1 << 24


class EngineResources:
    """Loaded models and what speculation needs.

    Args:
        config: The engine's.

    Raises:
        ConfigError: Options that don't go together.
        ModelLoadError: A model is missing, corrupt or unsupported.
        VocabMismatchError: The draft's tokens are not the target's.

    Effects:
        Pins this process to its cores where ``cores`` is given or the method is ``ssd``; SSD starts a process, which
        :meth:`close` (or the end of this one) ends.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        cores = config.cores or available_cores()
        torch.set_num_threads(config.num_threads)
        checkpoint = load_checkpoint(config.target)
        dtype = choose_dtype(
            config.dtype,
            cpu=cpu_info(),
            weights_are_quantized=checkpoint.quantised,
            is_ensemble=checkpoint.ensemble is not None,
            device=config.device,
        ).dtype
        if config.runs_on_device and dtype == "int8" and config.dtype == "auto":
            dtype = "float32"  # the CPU's twin of a GPU, whose passes have no int8 kernels
        if checkpoint.ensemble is not None and config.tensor_parallel > 1:
            raise ConfigError(
                f"tensor_parallel={config.tensor_parallel}: is for single models, and {config.target} is an ensemble; "
                "leave it out"
            )
        capacity = min(config.max_model_len or 4096, checkpoint.config.max_len)
        if config.max_model_len is not None and config.max_model_len > checkpoint.config.max_len:
            raise ConfigError(
                f"max_model_len={config.max_model_len}: {config.target} was trained for {checkpoint.config.max_len} "
                "tokens; use at most that"
            )
        self._factory = SpeculatorFactory(config, checkpoint, dtype=dtype, capacity=capacity, cores=cores)
        self._cores_before = available_cores()
        self._checkpoint = checkpoint
        self._num_requests = 0
        self._shared: SharedModel | LaunchedModel | None = None
        self.max_len = capacity
        self.grammars = GrammarCompiler(checkpoint.tokenizer, vocab_size=checkpoint.config.vocab_size)
        try:
            if self._factory.target_cores:
                pin_process(*self._factory.target_cores)
            self.target = self._load_target(dtype)
            # The first pass loads kernels or compiles them: better now than while a request waits.
            self.target.forward(Rows.chains([(0, 0, [0])]))
            self._factory.wait_until_ready(self.target)
            release_free_memory()
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise DeviceMemoryError(
                    f"target and draft do not fit into the memory of {config.device}: {error}; choose smaller ones, "
                    "dtype float8 or int4, a smaller kv_cache_bytes, max_num_seqs or max_model_len, or draft_device"
                ) from error
            raise

    def _load_target(self, dtype: DtypeName) -> LanguageModel:
        """Load the target, with other processes where they share it."""
        config, checkpoint = self.config, self._checkpoint
        if config.tensor_parallel > 1:
            share = ShareConfig(
                target=config.target,
                dtype=dtype,
                parts=config.tensor_parallel_parts or (1,) * config.tensor_parallel,
                num_sequences=config.max_num_seqs,
                capacity=self.max_len,
                device=config.device,
                is_eager=config.runs_eagerly,
                backend=config.attention,
                cache_bytes=config.kv_cache_bytes,
                num_threads=config.num_threads,
            )
            launch = Launch.of()
            self._shared = SharedModel(share, checkpoint) if launch is None else join_launch(launch, share, checkpoint)
            return self._shared
        recorder = recorder_for(config.device, is_eager=config.runs_eagerly, is_urgent=True)
        options = None
        if recorder is not None and checkpoint.ensemble is None:
            options = DeviceOptions(recorder=recorder, backend=config.attention, cache_bytes=config.kv_cache_bytes)
        return build_target(
            checkpoint,
            dtype=dtype,
            num_sequences=config.max_num_seqs,
            capacity=self.max_len,
            device=config.device,
            options=options,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer."""
        return self._checkpoint.tokenizer

    @property
    def vocab_size(self) -> int:
        """Rows of the target's embedding: ids below it can be given."""
        return self._checkpoint.config.vocab_size

    @property
    def layer_ids(self) -> range:
        """Every layer of the target, of all members of an ensemble; none where their states have different shapes."""
        ensemble = self._checkpoint.ensemble
        configs = [member.config for member in ((self._checkpoint,) if ensemble is None else ensemble.members)]
        shapes = {(config.num_kv_heads, config.head_dim) for config in configs}
        return range(sum(config.num_layers for config in configs) if len(shapes) == 1 else 0)

    def take_device_times(self) -> dict[str, float]:
        """As :meth:`forerun.engine.api.LLM.take_device_times`."""
        target = self.target
        recorders = {
            "target": [target.recorder] if isinstance(target, DeviceRunner | LeadingRunner) else [],
            "draft": [draft.recorder for draft in self._factory.device_drafts],
        }
        return {name: max(each.take_busy_s() for each in some) for name, some in recorders.items() if some}

    @property
    def num_recorded_graphs(self) -> int:
        """As :attr:`forerun.engine.api.LLM.num_recorded_graphs`."""
        graphs = (getattr(runner, "graphs", None) for runner in (self.target, *self._factory.device_drafts))
        return sum(pool.num_recorded for pool in graphs if isinstance(pool, GraphPool))

    def way_for_call(self, load: Load) -> Way:
        """As :meth:`forerun.engine.speculation.SpeculatorFactory.way_for_call`."""
        return self._factory.way_for_call(load)

    def every_way(self) -> tuple[Way, ...]:
        """As :meth:`forerun.engine.speculation.SpeculatorFactory.every_way`."""
        return self._factory.every_way(self.target)

    def new_request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        index: int,
        number: int,
        name: str,
        priority: int = 0,
    ) -> Request:
        """Return a request, checked against the model.

        Args:
            prompt_ids: The prompt.
            params: Sampling parameters; a seed is drawn if there is none.
            index: No other request in the engine has the same.
            number: Keys its noise, with the seed.
            name: What to call the prompt in an error.
            priority: Smaller goes first.

        Raises:
            RequestError: The prompt is empty, too long, or holds what is no token; parameters contradict it; or the
                constraint does not compile.
            MissingDependencyError: The package that compiles constraints is not installed.
        """
        ids = [int(token) for token in prompt_ids]
        if not ids:
            raise RequestError(f"{name} is empty: give at least one token")
        if len(ids) + 1 > self.max_len:
            raise RequestError(
                f"{name} has {len(ids)} tokens; the context holds {self.max_len} with at least one new token: "
                "shorten it, or raise max_model_len if the model allows"
            )
        if any(not 0 <= token < self.vocab_size for token in ids):
            raise RequestError(f"{name} has token ids outside [0, {self.vocab_size}): use this model's tokenizer")
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(63))
        room = self.max_len - len(ids)
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        self._num_requests += 1
        eos_ids = self._checkpoint.eos_ids
        constraint = None
        if params.constraint is not None:
            constraint = self.grammars.state(params.constraint, ending_ids=params.ending_ids(eos_ids))
        return Request(
            index=index,
            number=number,
            prompt_ids=tuple(ids),
            params=params,
            processor=LogitsProcessor(params, ids, eos_ids, self.vocab_size, constraint=constraint),
            tracker=OutputTracker(params, eos_ids, self.tokenizer.token_bytes, max_tokens=max_tokens),
            max_tokens=max_tokens,
            round_number=self._num_requests * _ROUNDS_PER_REQUEST,
            priority=priority,
        )

    def close(self) -> None:
        """End the drafter's process and those that share the target, and give this process its cores back."""
        self._factory.close()
        if self._shared is not None:
            self._shared.close()
        if available_cores() != self._cores_before:
            pin_process(*self._cores_before)
