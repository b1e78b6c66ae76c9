"""Training steps a second against the training script of nanoGPT's design; writes benchmarks/results.

    python benchmarks/bench_pretrain.py [--nanogpt DIR] [--sizes 150k,440k] [--turns 20] [--steps 10] [--out FILE]

Three workers train on the same random tokens, each in a process of its own, all on one core and in float32, in turns
that are a few steps long; which of them begins is drawn anew for each round. While one works the others are blocked.

ours     the training loop as 'forerun pretrain train' runs it, batches and checks of the loss among its work
plain    our model in the step of nanoGPT's script: same batch reader, default AdamW, clipping, no fused operation
nanogpt  nanoGPT's own model of the same widths (its tied head has one matrix less) in the same step, from --nanogpt
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, SEQUENCE_TOKENS, BATCH_SEQUENCES, CORPUS_TOKENS = 1024, 128, 8, 1 << 16
LEARNING_RATE, WEIGHT_DECAY, WARM_UP_STEPS = 1e-3, 0.1, 10
RESULT = Path(__file__).parent / "results" / "pretrain_throughput.json"


def work(name: str, size: str, tokens: Path, nanogpt: Path | None) -> None:
    """Train as many steps as each line of standard input says, and answer with their time as a line of JSON."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a model that prints must not answer
    started: dict[str, float] = {}
    left = 0

    def on_step(loss: float) -> None:
        nonlocal left
        left -= 1
        if left > 0:
            return
        if started:
            took = {key: now - started[key] for key, now in clocks().items()}
            replies.write(json.dumps(took | {"loss": loss, "peak_bytes": peak_bytes()}) + "\n")
            replies.flush()
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        left = int(line)
        started.update(clocks())

    on_step(0.0)
    ids = np.memmap(tokens, np.uint16, "r")
    (train_ours if name == "ours" else train_by_script)(name, size, ids, nanogpt, on_step)


def clocks() -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_s": time.process_time(), "wall_s": time.perf_counter(), "page_faults": usage.ru_minflt}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train_ours(name: str, size: Any, ids: np.ndarray, _: Path | None, on_step: Callable[[float], None]) -> None:
    from forerun.core.memory import keep_freed_memory
    from forerun.data.tokens import TokenStream
    from forerun.pretraining.batches import EpochBatches
    from forerun.pretraining.config import SHAPES
    from forerun.pretraining.initialisation import fresh_decoder
    from forerun.pretraining.train import next_token_loss
    from forerun.training.loop import LoopConfig, TrainingLoop

    keep_freed_memory()
    decoder = fresh_decoder(SHAPES[size], vocab_size=VOCABULARY, max_len=SEQUENCE_TOKENS, seed=0)
    stream = TokenStream(ids=ids, starts=np.arange(0, len(ids) + 1, 1024))
    batches = EpochBatches(stream, sequence_tokens=SEQUENCE_TOKENS, batch_sequences=BATCH_SEQUENCES, seed=0)
    TrainingLoop(
        decoder,
        LoopConfig(num_steps=1_000_000, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        batch_at=batches.at,
        loss=lambda ids_BT: next_token_loss(decoder, ids_BT),
        on_step=lambda step, loss, learning_rate: on_step(loss),
    ).run()


def train_by_script(
    name: str, size: Any, ids: np.ndarray, nanogpt: Path | None, on_step: Callable[[float], None]
) -> None:
    """Run the step of nanoGPT's script, which computes in float32 wherever it trains on a CPU."""
    import torch

    model, loss_of, optimizer = (nanogpt_model if name == "nanogpt" else plain_model)(size, nanogpt)
    parameters = list(model.parameters())
    while True:
        starts = torch.randint(len(ids) - SEQUENCE_TOKENS, (BATCH_SEQUENCES,))
        inputs, targets = (
            torch.stack(
                [torch.from_numpy(ids[s + shift : s + shift + SEQUENCE_TOKENS].astype(np.int64)) for s in starts]
            )
            for shift in (0, 1)
        )
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        on_step(loss.item())


def plain_model(size: Any, _: Path | None) -> tuple[Any, Callable, Any]:
    import torch
    from torch.nn.functional import cross_entropy

    from forerun.pretraining.config import SHAPES
    from forerun.pretraining.initialisation import fresh_decoder

    decoder = fresh_decoder(SHAPES[size], vocab_size=VOCABULARY, max_len=SEQUENCE_TOKENS, seed=0)
    groups = [
        {"params": [p for p in decoder.parameters() if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in decoder.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    return decoder, lambda x, y: cross_entropy(decoder(x).flatten(0, 1), y.flatten()), optimizer


def nanogpt_model(size: Any, nanogpt: Path | None) -> tuple[Any, Callable, Any]:
    from forerun.pretraining.config import SHAPES

    sys.path.insert(0, str(nanogpt))
    from model import GPT, GPTConfig  # pyright: ignore[reportMissingImports] (found through --nanogpt)

    shape = SHAPES[size]
    config = GPTConfig(
        block_size=SEQUENCE_TOKENS,
        vocab_size=VOCABULARY,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_embd=shape.hidden_size,
        dropout=0.0,
        bias=False,
    )
    model = GPT(config)
    optimizer = model.configure_optimizers(WEIGHT_DECAY, LEARNING_RATE, (0.9, 0.95), "cpu")
    return model, lambda x, y: model(x, y)[1], optimizer


class Worker:
    """A process that trains when told to."""

    def __init__(self, name: str, size: str, tokens: Path, nanogpt: Path | None, core: int) -> None:
        self.name = name
        command = [sys.executable, __file__, "--worker", name, "--sizes", size, "--tokens", os.fspath(tokens)]
        self._process = subprocess.Popen(
            command + ([] if nanogpt is None else ["--nanogpt", os.fspath(nanogpt)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def train(self, steps: int) -> dict[str, float]:
        """Return the time and the last loss of some steps."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker {self.name} ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(args: argparse.Namespace, size: str, tokens: Path, core: int) -> dict[str, Any]:
    names = ["ours", "plain"] + (["nanogpt"] if args.nanogpt is not None else [])
    workers = [Worker(name, size, tokens, args.nanogpt, core) for name in names]
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    order = random.Random(0)
    for worker in workers:
        worker.train(WARM_UP_STEPS)
    for round_index in range(args.turns):
        for worker in order.sample(workers, len(workers)):
            turns[worker.name].append(worker.train(args.steps))
        tell(f"{size}: round {round_index + 1} of {args.turns}")
    for worker in workers:
        worker.close()
    tokens_of_turn = args.steps * BATCH_SEQUENCES * SEQUENCE_TOKENS
    return {
        "workers": {
            name: {
                "tokens_per_cpu_s": tokens_of_turn / statistics.median(turn["cpu_s"] for turn in taken),
                "cpu_ms_per_step": [round(1000 * turn["cpu_s"] / args.steps, 3) for turn in taken],
                "wall_over_cpu": sum(turn["wall_s"] for turn in taken) / sum(turn["cpu_s"] for turn in taken),
                "page_faults_per_step": statistics.median(turn["page_faults"] for turn in taken) / args.steps,
                "peak_bytes": taken[-1]["peak_bytes"],
                "last_loss_nats": taken[-1]["loss"],
            }
            for name, taken in turns.items()
        },
        "ours_over": {name: ratio(turns["ours"], turns[name]) for name in names[1:]},
    }


def ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    """Return how many times as many tokens a CPU second we train: medians, and an interval over rounds."""
    draw = random.Random(1)
    mine, other = [turn["cpu_s"] for turn in ours], [turn["cpu_s"] for turn in theirs]

    def replicates() -> Iterator[float]:
        for _ in range(4000):
            rounds = draw.choices(range(len(mine)), k=len(mine))
            yield statistics.median(other[r] for r in rounds) / statistics.median(mine[r] for r in rounds)

    values = sorted(replicates())
    return {
        "value": statistics.median(other) / statistics.median(mine),
        "low": values[100],
        "high": values[-101],
    }


def tell(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT (its model.py is imported)")
    parser.add_argument("--sizes", default="150k,440k", metavar="SIZE,...")
    parser.add_argument("--turns", type=int, default=20, metavar="N", help="rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps of a turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--worker", choices=("ours", "plain", "nanogpt"), help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        work(args.worker, args.sizes, args.tokens, args.nanogpt)
        return
    from forerun.core.env import available_cores, cpu_info, package_versions

    core, load_before = available_cores()[-1], os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.bin"
        np.random.default_rng(0).integers(0, VOCABULARY, CORPUS_TOKENS, dtype=np.uint16).tofile(tokens)
        sizes = {size: measure(args, size, tokens, core) for size in args.sizes.split(",")}
    result = {
        "protocol": {
            "dtype": "float32",
            "threads": 1,
            "vocabulary": VOCABULARY,
            "sequence_tokens": SEQUENCE_TOKENS,
            "batch_sequences": BATCH_SEQUENCES,
            "rounds": args.turns,
            "steps_per_turn": args.steps,
            "warm_up_steps": WARM_UP_STEPS,
        },
        "cpu": cpu_info().model_name,
        "versions": package_versions(("forerun", "torch", "numba", "numpy")),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "sizes": sizes,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for size, found in sizes.items():
        for name, value in found["ours_over"].items():
            tell(f"{size}: {value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}] times {name}")


if __name__ == "__main__":
    main()
