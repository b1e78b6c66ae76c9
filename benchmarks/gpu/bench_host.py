"""What the host takes between two passes of the target, which a GPU would wait for: measured without a GPU.

    python benchmarks/gpu/bench_host.py
    python benchmarks/gpu/bench_host.py --against path/to/another/checkout

Each case decodes once by passes of fixed shape on the CPU, whose results are kept, and then again several times with
every pass answered at once from what was kept. What is left is the host's work: choosing the shape, packing, verifying,
text, counting, the draft's look-ups. A gap is the time from a result of the target to its next launch. It holds what
the engine does there and not what CUDA adds (a copy and a launch, tens of microseconds). Drafts of a miss are in it,
but for the time that the draft would compute; what the host does for the draft beside a verification is not, as if no
verification were shorter than that. Cases of two checkouts alternate.

Writes benchmarks/results/host_gap.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

_ROOT = Path(__file__).resolve().parents[2]
_NUM_SPECULATIVE_TOKENS = 4


def measure(method: str, batch_size: int, temperature: float, *, num_tokens: int, repeats: int) -> dict[str, float]:
    """Return gaps in milliseconds: the median over rounds with all requests, and the lowest and highest repeat's."""
    from forerun.engine.api import LLM
    from forerun.engine.config import SpeculativeConfig
    from forerun.engine.sampling import SamplingParams
    from forerun.models.graph_pool import GraphPool

    kept: list[object] = []
    gaps: list[float] = []
    place, last_result = 0, 0.0

    class Kept:
        def __init__(self, result: object, *, is_target: bool) -> None:
            self._result, self._is_target = result, is_target

        def result(self) -> object:
            nonlocal last_result
            if self._is_target:
                last_result = time.perf_counter()
            return self._result

    def keeping(work):
        def work_and_keep(*args):
            pending = work(*args)
            kept.append(pending.result())
            return pending

        return work_and_keep

    def answer(_pool, key, _function, _inputs) -> Kept:
        nonlocal place
        is_target = key[0] == "pass"
        if is_target and last_result and key[1].num_sequences >= batch_size:
            gaps.append(time.perf_counter() - last_result)
        place += 1
        return Kept(kept[place - 1], is_target=is_target)

    lines = (_ROOT / "benchmarks" / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(lines[number % len(lines)])["prompt"] for number in range(batch_size)]
    params = SamplingParams(temperature=temperature, max_tokens=num_tokens, ignore_eos=True, seed=1)
    speculative = SpeculativeConfig(num_speculative_tokens=_NUM_SPECULATIVE_TOKENS)
    options = {"method": method, "max_num_seqs": batch_size, "max_model_len": 1024, "speculative": speculative}
    llm = LLM(graphs="eager", dtype="float32", **options)
    llm.generate(prompts, params)  # the prompts are cached from here on
    own = GraphPool.launch, GraphPool.run
    GraphPool.launch, GraphPool.run = keeping(own[0]), keeping(own[1])
    expected = [output.token_ids for output in llm.generate(prompts, params)]
    GraphPool.launch = answer
    GraphPool.run = lambda pool, function, inputs: answer(pool, ("part of a prompt",), function, inputs)
    medians: list[float] = []
    for _ in range(repeats):
        place, last_result = 0, 0.0
        gaps.clear()
        assert [output.token_ids for output in llm.generate(prompts, params)] == expected
        medians.append(1e3 * median(gaps))
    GraphPool.launch, GraphPool.run = own
    return {"gap_ms": median(medians), "least_ms": min(medians), "most_ms": max(medians), "rounds": len(gaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--methods", default="none,sequential,ssd")
    parser.add_argument("--batch-sizes", default="1,16")
    parser.add_argument("--temperatures", default="0,0.8")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each request")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, default=_ROOT / "benchmarks" / "results" / "host_gap.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        method, batch_size, temperature = given.case.split(",")
        found = measure(method, int(batch_size), float(temperature), num_tokens=given.tokens, repeats=given.repeats)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    if wrong := set(given.methods.split(",")) - {"none", "sequential", "ssd"}:
        parser.error(f"--methods {','.join(sorted(wrong))}: choose from none, sequential, ssd")
    checkouts = {"this": _ROOT} | ({"other": given.against.resolve()} if given.against else {})
    cases = [
        f"{method},{batch_size},{temperature}"
        for batch_size in given.batch_sizes.split(",")
        for method in given.methods.split(",")
        for temperature in given.temperatures.split(",")
    ]
    sizes = ["--tokens", str(given.tokens), "--repeats", str(given.repeats)]
    results: list[dict[str, object]] = []
    for case in cases:
        method, batch_size, temperature = case.split(",")
        row: dict[str, object] = {
            "method": method, "batch_size": int(batch_size), "temperature": float(temperature),
        }  # fmt: skip
        for name, folder in checkouts.items():
            done = subprocess.run(
                [sys.executable, __file__, "--case", case, *sizes],
                env=os.environ | {"PYTHONPATH": str(folder / "src")}, stdout=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                sys.exit(f"{case}: did not run in {folder}")
            row[name] = json.loads(done.stdout.splitlines()[-1])
        results.append(row)
        sys.stdout.write(f"{case} " + " ".join(f"{name} {row[name]['gap_ms']:.3f} ms" for name in checkouts) + "\n")
        sys.stdout.flush()
        head = {"num_speculative_tokens": _NUM_SPECULATIVE_TOKENS, "tokens": given.tokens, "repeats": given.repeats}
        given.json.write_text(json.dumps(head | {"cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
