"""One of several processes that share a batch: its value of SIGReg, and the gradient that data parallelism averages."""

import torch
import torch.distributed as dist
from torch import nn

from forerun.worldmodels.jepa.sigreg import SigRegConfig, sigreg_statistic

CONFIG = SigRegConfig(num_projections=6, num_knots=9)


def inputs() -> torch.Tensor:
    """Return the batch of all processes, [T, B, D]."""
    return torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5


def encoder() -> nn.Linear:
    """Return the same linear map in every process."""
    layer = nn.Linear(4, 6).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 24).view(6, 4))
        layer.bias.fill_(0.1)
    return layer


def run(rank: int, world_size: int, file: str, out: str) -> None:
    """Take a share of the batch, let the gradient be averaged, and write value and gradient."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world_size)
    try:
        layer = nn.parallel.DistributedDataParallel(encoder())
        value = sigreg_statistic(layer(inputs().chunk(world_size, dim=1)[rank]), CONFIG)
        value.backward()
        gradients = {name: parameter.grad for name, parameter in layer.module.named_parameters()}
        torch.save({"value": value.detach(), **gradients}, f"{out}-{rank}")
    finally:
        dist.destroy_process_group()
