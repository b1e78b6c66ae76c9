"""What ``forerun doctor`` says of GPUs: which are there, what would run on them and how, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from forerun.core.dtype_choice import choose_dtype
from forerun.core.env import cpu_info
from forerun.nn.float8_linear import FIRST_WITH_FLOAT8
from forerun.nn.int4_linear import FIRST_WITH_INT4

_FIRST_WITH_BFLOAT16 = (8, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuInfo:
    """A GPU.

    Attributes:
        name: As its driver says.
        capability: Compute capability, major and minor.
        num_multiprocessors: How many there are.
        total_bytes: Its memory.
        free_bytes: Of this, what nobody uses.
    """

    name: str
    capability: tuple[int, int]
    num_multiprocessors: int
    total_bytes: int
    free_bytes: int


def present_gpus() -> tuple[GpuInfo, ...]:
    """Return the GPUs that torch can use.

    Effects:
        Begins to use each of them, which takes some of its memory.
    """
    if not torch.cuda.is_available():
        return ()
    found: list[GpuInfo] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(
            GpuInfo(
                name=properties.name,
                capability=(properties.major, properties.minor),
                num_multiprocessors=properties.multi_processor_count,
                total_bytes=total,
                free_bytes=free,
            )
        )
    return tuple(found)


def _narrow_weights(capability: tuple[int, int]) -> str:
    """Say what weights of 8 and of 4 bits are good for."""
    float8 = (
        "--dtype float8 halves what a pass reads"
        if capability >= FIRST_WITH_FLOAT8
        else f"--dtype float8 halves the memory, and takes longer: its products need {_shown(FIRST_WITH_FLOAT8)}"
    )
    int4 = (
        "--dtype int4 reads less than a third"
        if capability >= FIRST_WITH_INT4
        else f"--dtype int4 is refused: its kernel needs {_shown(FIRST_WITH_INT4)}"
    )
    return f"{float8}; {int4}"


def _shown(capability: tuple[int, int]) -> str:
    return f"compute capability {capability[0]}.{capability[1]}"


def device_report(
    gpus: Sequence[GpuInfo], *, cuda_build: str | None = torch.version.cuda, has_triton: bool | None = None
) -> dict[str, Any]:
    """Return facts by name: the GPUs, and for work on them number format, graphs, attention and draft, with reasons.

    Args:
        gpus: From :func:`present_gpus`.
        cuda_build: Version of CUDA that torch is built for.
        has_triton: Whether Triton is installed; ``None`` to look.
    """
    facts: dict[str, Any] = {
        "cuda": [gpu.name for gpu in gpus],
        "torch_built_for_cuda": cuda_build,
        "default_device": "cpu",
    }
    if not gpus:
        reason = "PyTorch finds no CUDA device" if cuda_build else "this build of PyTorch is for CPUs"
        return facts | {"default_device_why": reason}
    facts["default_device_why"] = 'a GPU is used when asked for: --device cuda, or LLM(device="cuda")'
    for index, gpu in enumerate(gpus):
        dtype = choose_dtype("auto", cpu=cpu_info(), weights_are_quantized=False, device=f"cuda:{index}")
        is_slow = gpu.capability < _FIRST_WITH_BFLOAT16
        facts |= {
            f"cuda:{index}": f"{gpu.name}, {_shown(gpu.capability)}, "
            f"{gpu.num_multiprocessors} multiprocessors, {gpu.free_bytes / 2**30:.1f} of "
            f"{gpu.total_bytes / 2**30:.1f} GiB free",
            f"cuda:{index}_dtype": dtype.dtype,
            f"cuda:{index}_dtype_why": "emulated before compute capability 8.0; --dtype float32 may be faster"
            if is_slow
            else dtype.reason,
            f"cuda:{index}_weights": _narrow_weights(gpu.capability),
        }
    has_triton = find_spec("triton") is not None if has_triton is None else has_triton
    flex = "is there" if has_triton else "needs Triton, which is not installed"
    draft = "in a stream of its own beside the target"
    draft += "; --draft-device cuda:1 gives it a GPU" if len(gpus) > 1 else ", on the one GPU"
    if len(gpus) > 2:
        draft += ", and --draft-data-parallel 2 with it two, for twice the outcomes"
    return facts | {
        "graphs": "CUDA graphs",
        "graphs_why": "a pass of few rows is one launch instead of hundreds; --graphs eager turns them off",
        "attention": "matmul",
        "attention_why": f"two matrix products, which any GPU has; --attention flex, one compiled kernel, {flex}",
        "draft": draft,
    }
