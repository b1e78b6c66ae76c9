"""Engine configuration: how to decode, with what draft, on which cores."""

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from forerun.core.errors import ConfigError

Method = Literal["none", "sequential", "ssd", "auto"]
FanOutPolicy = Literal["joint", "uniform", "geometric", "measured"]
Fallback = Literal["neural", "ngram", "none"]
Verification = Literal["coupled", "rejection"]
Dtype = Literal["auto", "int8", "float32", "bfloat16", "float8", "int4"]
Graphs = Literal["auto", "eager"]
Attention = Literal["matmul", "flex"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculativeConfig:
    r"""How drafts are made and verified.

    Attributes:
        num_speculative_tokens: K, draft tokens per round. ``None``: the controller chooses.
        branch_budget: B, outcomes prepared per round and request (SSD), by all copies of the draft together.
            ``None``: the controller chooses; in passes of fixed shape, 20 for each copy.
        fan_out: How B is shared over the number of accepted tokens: to the outcomes that the draft's own laws make
            likeliest (under ``rejection`` with temperature: as ``measured``), the same for each, by the paper's
            geometric law, or in proportion to :math:`P(k)^{1/(1+r)}` with P(k) as measured in this run.
        fan_out_exponent: r of the miss law :math:`1 - p_{hit}(F) = F^{-r}`.
        expected_acceptance_rate: a of the geometric fan-out, a fraction in (0, 1).
        fallback: What drafts after a miss: the neural draft while the target waits, n-gram look-up, or nothing.
        verification: ``coupled``: target and draft share the noise of each position, so every method emits the same
            tokens under one seed (a draft token is accepted when it equals the target's own sample). ``rejection``:
            the accept/residual rule of speculative sampling. Greedy decoding is the same under both.
        copy_from_context: Mix the draft's law with what followed the last occurrence of the context's end.
        saguaro_c: C of Saguaro sampling in [0, 1]; 1 is off. Needs ``verification="rejection"``.
        drafter_timeout_s: A drafter silent for longer is given up, and decoding goes on without it.
        drafter_restarts: How often in a row another drafter is started when one has ended; 0: never.
    """

    num_speculative_tokens: int | None = None
    branch_budget: int | None = None
    fan_out: FanOutPolicy = "joint"
    fan_out_exponent: float = 1.0
    expected_acceptance_rate: float = 0.7
    fallback: Fallback = "neural"
    verification: Verification = "coupled"
    copy_from_context: bool = True
    saguaro_c: float = 1.0
    drafter_timeout_s: float = 10.0
    drafter_restarts: int = 5

    def __post_init__(self) -> None:
        _require_at_least("speculative.num_speculative_tokens", self.num_speculative_tokens, 1, 'method="none"')
        _require_at_least("speculative.branch_budget", self.branch_budget, 1, 'method="sequential"')
        _require_at_least("speculative.drafter_restarts", self.drafter_restarts, 0, "0 to start none")
        if not 0 < self.expected_acceptance_rate < 1:
            raise ConfigError(
                f"speculative.expected_acceptance_rate={self.expected_acceptance_rate}: must be in (0, 1)"
            )
        if not self.fan_out_exponent > 0:
            raise ConfigError(f"speculative.fan_out_exponent={self.fan_out_exponent}: must be > 0")
        if not self.drafter_timeout_s > 0:
            raise ConfigError(f"speculative.drafter_timeout_s={self.drafter_timeout_s}: must be > 0 seconds")
        if not 0 <= self.saguaro_c <= 1:
            raise ConfigError(f"speculative.saguaro_c={self.saguaro_c}: must be in [0, 1]; 1 turns it off")
        if self.saguaro_c < 1 and self.verification != "rejection":
            raise ConfigError(
                f"speculative.saguaro_c={self.saguaro_c}: rescales the draft's law, which only "
                'verification="rejection" looks at; set that, or saguaro_c=1'
            )
        _require_choice("speculative.fan_out", self.fan_out, get_args(FanOutPolicy))
        _require_choice("speculative.fallback", self.fallback, get_args(Fallback))
        _require_choice("speculative.verification", self.verification, get_args(Verification))


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Where models come from and what the engine may use.

    Attributes:
        target: ``"default"`` (embedded SmolLM2-135M-Instruct), a GGUF file, a Hugging Face directory or hub name, or
            the folder of a pre-training run or of an ensemble.
        draft: ``"default"`` (the shipped draft where it fits the target, the first member of an ensemble), ``"ngram"``,
            ``"self"`` (layer skip; the first member of an ensemble), ``None``, an EAGLE-3 head, or a path or name as
            for ``target``.
        method: Decoding method.
        dtype: ``"auto"`` keeps quantised weights in int8 on a CPU that has a kernel for them, averages ensembles in
            float32, and runs drafts in int8 where the CPU can; else the weights of both as named. ``float8`` and
            ``int4`` are for GPUs (a CPU computes the same, slowly).
        device: Where target and draft run: ``cpu``, ``cuda`` or ``cuda:N``.
        draft_device: Where the draft runs, if elsewhere; ``None``: where the target does, in a stream of its own.
        draft_data_parallel: Copies of the draft, each on a GPU of its own: ``draft_device`` and those after it. Each
            prepares for a part of the outcomes, so more are prepared in the same time.
        draft_sm_share: Share of the multiprocessors that a draft on the target's GPU may use, in (0, 1), where the GPU
            can set some apart (green contexts); ``None``: any that the target leaves idle.
        graphs: ``auto`` replays passes as CUDA graphs on a GPU; ``eager`` runs the same passes kernel by kernel, on a
            CPU too, where it is the slow twin of a GPU's.
        tensor_parallel: Processes that share the target, each with a GPU of its own: ``device`` and those after it.
        tensor_parallel_parts: How much of it each gets, in proportion, such as ``2,1``; ``None``: the same.
        attention: How a pass of fixed shape reads what is cached: ``matmul``, or ``flex`` for FlexAttention.
        kv_cache_bytes: Most bytes of the target's keys and values on a GPU; ``None``: 80% of what is free there.
        max_model_len: Context in tokens, prompt and output together; ``None``: the model's own, at most 4096.
        max_num_seqs: Requests decoded side by side; more wait.
        num_threads: Threads of the target on a CPU.
        cores: CPU cores to pin to: the target's first, the drafter's last; ``None``: from the affinity mask.
        speculative: How drafts are made and verified.
    """

    target: str = "default"
    draft: str | None = "default"
    method: Method = "auto"
    dtype: Dtype = "auto"
    device: str = "cpu"
    draft_device: str | None = None
    draft_data_parallel: int = 1
    draft_sm_share: float | None = None
    graphs: Graphs = "auto"
    tensor_parallel: int = 1
    tensor_parallel_parts: tuple[int, ...] | None = None
    attention: Attention = "matmul"
    kv_cache_bytes: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 4
    num_threads: int = 1
    cores: tuple[int, ...] | None = None
    speculative: SpeculativeConfig = field(default_factory=SpeculativeConfig)

    def __post_init__(self) -> None:
        _require_at_least("max_model_len", self.max_model_len, 2, "max_model_len=None for the model's own")
        _require_at_least("max_num_seqs", self.max_num_seqs, 1, "max_num_seqs=1 to decode one at a time")
        _require_at_least("num_threads", self.num_threads, 1, "num_threads=1")
        _require_choice("method", self.method, get_args(Method))
        _require_choice("dtype", self.dtype, get_args(Dtype))
        _require_choice("graphs", self.graphs, get_args(Graphs))
        _require_choice("attention", self.attention, get_args(Attention))
        _require_at_least("kv_cache_bytes", self.kv_cache_bytes, 1, "kv_cache_bytes=None to take what is free")
        _require_at_least("tensor_parallel", self.tensor_parallel, 1, "tensor_parallel=1 for one process")
        parts = self.tensor_parallel_parts
        if parts is not None and (len(parts) != self.tensor_parallel or min(parts) < 1):
            raise ConfigError(
                f"tensor_parallel_parts={parts}: must be {self.tensor_parallel} whole numbers from 1 on, one for each "
                "process of tensor_parallel"
            )
        _require_device("device", self.device)
        if self.draft_device is not None:
            _require_device("draft_device", self.draft_device)
            if self.device != "cpu" and self.draft_device == "cpu":
                raise ConfigError(
                    f'draft_device="cpu" with device={self.device!r}: the draft of a target on a GPU runs on one too; '
                    "name it, or leave draft_device out"
                )
            if not self.runs_on_device:
                raise ConfigError(
                    f'draft_device={self.draft_device!r}: with device="cpu" the draft has a process of its own there; '
                    "set device to a GPU too, or leave draft_device out"
                )
        self._check_draft_copies()
        if self.runs_on_device and self.speculative.saguaro_c < 1:
            raise ConfigError(
                f"speculative.saguaro_c={self.speculative.saguaro_c}: in passes of fixed shape drafts are drawn from "
                'their law as it is; set saguaro_c=1, or decode on a CPU with graphs="auto"'
            )
        if self.draft_sm_share is not None and not 0 < self.draft_sm_share < 1:
            raise ConfigError(f"draft_sm_share={self.draft_sm_share}: must be in (0, 1); leave it out for all")
        if self.draft_sm_share is not None and self.draft_device is not None:
            raise ConfigError(
                f"draft_sm_share={self.draft_sm_share} with draft_device={self.draft_device!r}: a draft on a GPU of "
                "its own has all of it; leave one of them out"
            )
        if self.cores is not None and len(self.cores) < self.num_threads:
            raise ConfigError(
                f"cores={self.cores}: fewer than num_threads={self.num_threads}; list a core per thread, and one for "
                "the drafter"
            )

    def _check_draft_copies(self) -> None:
        num, budget = self.draft_data_parallel, self.speculative.branch_budget
        _require_at_least("draft_data_parallel", num, 1, "draft_data_parallel=1 for one draft")
        if num == 1:
            return
        if not self.runs_on_device:
            raise ConfigError(
                f"draft_data_parallel={num}: copies of the draft are for GPUs; set device to one, or "
                'graphs="eager" for the same passes on a CPU'
            )
        if self.device != "cpu" and self.draft_device is None:
            raise ConfigError(
                f"draft_data_parallel={num}: each copy takes a GPU of its own; set draft_device to the first of them"
            )
        if self.device != "cpu" and self.draft_device is not None:
            first, first_draft = (int(name.partition(":")[2] or 0) for name in (self.device, self.draft_device))
            if first < first_draft + num and first_draft < first + self.tensor_parallel:
                taken = f"cuda:{first}"
                taken += f" to cuda:{first + self.tensor_parallel - 1}" if self.tensor_parallel > 1 else ""
                raise ConfigError(
                    f"draft_data_parallel={num} from {self.draft_device} on: the target takes {taken}; copies of the "
                    "draft need others"
                )
        if self.draft is None:
            raise ConfigError(f"draft_data_parallel={num}: there is no draft; set draft, or leave it out")
        if self.method not in {"ssd", "auto"}:
            raise ConfigError(
                f'draft_data_parallel={num} with method="{self.method}": copies prepare for more outcomes, which only '
                'method="ssd" and "auto" do; leave it out'
            )
        if budget is not None and budget < num:
            raise ConfigError(
                f"speculative.branch_budget={budget} with draft_data_parallel={num}: is for all copies together; "
                "raise it to one outcome for each at least"
            )

    @property
    def runs_on_device(self) -> bool:
        """Whether target and draft run in passes of fixed shape, the draft in this process, as they do on a GPU."""
        return self.device != "cpu" or self.runs_eagerly

    @property
    def runs_eagerly(self) -> bool:
        """Whether such passes are run kernel by kernel."""
        return self.graphs == "eager" or (self.device == "cpu" and self.tensor_parallel > 1)


def _require_device(name: str, value: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        raise ConfigError(f"{name}={value!r}: must be cpu, cuda or cuda:N")


def _require_at_least(name: str, value: int | None, least: int, otherwise: str) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{name}={value}: must be >= {least}; set {otherwise}")


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
