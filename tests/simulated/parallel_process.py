"""The second of two processes that share a model: ``python parallel_process.py STORE`` follows until the first ends."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from forerun.models.config import DecoderConfig
from forerun.models.layout import parameter_shapes
from forerun.models.tensor_parallel import Collective, ProcessCollective, TensorParallelRunner, follow
from forerun.models.torch_runner import TorchRunner

CONFIG = DecoderConfig(
    family="qwen2", vocab_size=31, hidden_size=24, intermediate_size=36, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=6, max_len=64, attention_bias=True, tie_embeddings=True,
)  # fmt: skip
CACHE = {"num_sequences": 2, "capacity": 40}
CPU = torch.device("cpu")


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {
        name: (rng.standard_normal(shape) * (1.5 / shape[-1] ** 0.5)).astype(np.float32)
        for name, shape in parameter_shapes(CONFIG).items()
    }


def share(collective: Collective) -> TensorParallelRunner:
    return TensorParallelRunner(
        CONFIG,
        weights().__getitem__,
        lambda decoder, ids: TorchRunner(decoder, vocab_ids=ids, **CACHE),
        collective=collective,
    )


def join(store: Path, *, rank: int) -> ProcessCollective:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    return ProcessCollective()


if __name__ == "__main__":
    processes = join(Path(sys.argv[1]), rank=1)
    follow(share(processes), processes, device=CPU)
    distributed.destroy_process_group()
