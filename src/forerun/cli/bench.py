"""``forerun bench``: its themes, and ``forerun bench decode``: decoding methods and engines on the same prompts."""

import argparse
from pathlib import Path
from typing import Any

from forerun.cli import bench_gpu, bench_project
from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_json_option, input_file, output_file
from forerun.core.errors import ConfigError

_QUICK = {"num_prompts": 8, "max_tokens": 32}


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser("bench", help="measure speed, memory and exactness, with other engines beside ours")
    themes = parser.add_subparsers(title="themes", metavar="THEME", required=True)
    decode = themes.add_parser(
        "decode",
        help="tokens per second of every decoding method",
        description="Runs every engine in a process of its own, asks them in turn prompt by prompt, and compares the "
        "results with the numbers to reach. Needs two cores, and a machine with nothing else to do.",
    )
    decode.add_argument(
        "--prompts", type=input_file, required=True, metavar="FILE", help="JSON lines with id, kind and prompt"
    )
    decode.add_argument("--quick", action="store_true", help="8 prompts and 32 tokens: does it run?")
    decode.add_argument("--target", default="default", help="model to decode with (default: the embedded one)")
    decode.add_argument("--draft", default="default", help="its draft (default: the shipped one)")
    decode.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an output (default: 128)")
    decode.add_argument("--engines", metavar="A,B", help="only these, such as ar,ssd,llama.cpp-1")
    decode.add_argument("--peers", type=_folder, metavar="DIR", help="also measure the engines whose workers are here")
    decode.add_argument("--llama-python", type=input_file, metavar="FILE", help="interpreter with llama-cpp-python")
    decode.add_argument("--measurements", type=output_file, metavar="FILE", help="append each measurement (JSONL)")
    decode.add_argument("--resume", action="store_true", help="go on with the interrupted run in --measurements")
    decode.add_argument("--time-limit", type=float, metavar="S", help="begin no prompt after S seconds (default: 2040)")
    decode.add_argument("--plot", type=output_file, metavar="FILE", help="draw the results (needs forerun[plot])")
    add_json_option(decode)
    decode.set_defaults(run_theme=_run_decode)
    bench_gpu.add_parser(themes).set_defaults(run_theme=bench_gpu.run)
    bench_project.add_parser(themes).set_defaults(run_theme=bench_project.run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the theme that was named."""
    return args.run_theme(args)


def _run_decode(args: argparse.Namespace) -> int:
    """Measure and print; the status is 1 where one of our engines failed."""
    from forerun.recipes.decode_benchmark.run import DecodeBenchmarkConfig, run_decode_benchmark

    if args.quick and args.max_tokens is not None:
        raise ConfigError(f"--quick with --max-tokens {args.max_tokens}: --quick sets it; leave one of them out")
    options: dict[str, Any] = _QUICK if args.quick else {}
    if args.max_tokens is not None:
        options |= {"max_tokens": args.max_tokens}
    if args.time_limit is not None:
        options |= {"time_limit_s": args.time_limit}
    config = DecodeBenchmarkConfig(
        prompts=args.prompts,
        target=args.target,
        draft=args.draft,
        engines=tuple(args.engines.split(",")) if args.engines else None,
        peers=args.peers,
        llama_python=args.llama_python,
        measurements=args.measurements,
        resume=args.resume,
        plot=args.plot,
        **options,
    )
    summary = run_decode_benchmark(config, report=write_line)
    _print(summary)
    if args.json is not None:
        write_json(args.json, summary)
    own = {name for name, engine in summary["engines"].items() if engine["is_own"]}
    return 1 if not own or any(item["is_own"] for item in summary["failures"]) else 0


def _print(summary: dict[str, Any]) -> None:
    for title, key in (("greedy", "greedy"), ("temperature 0.7", "sampled")):
        write_line(f"\n{title:<46} tokens/s  over AR  accepted  length  hits")
        for name, found in summary[key]["engines"].items():
            ratio = summary[key]["speedups"].get(f"{name} / ar")
            cells = [
                f"{found['tokens_per_s']:>8.1f}",
                f"{ratio['value']:>7.2f}x" if ratio else f"{'':>8}",
                *(
                    _shown(found.get(field))
                    for field in ("acceptance_rate", "mean_acceptance_length", "cache_hit_rate")
                ),
            ]
            write_line(f"{summary['engines'][name]['label']:<46} {' '.join(cells)}")
    write_line()
    for bar in summary["bars"]:
        value = "-" if bar["value"] is None else f"{bar['value']:.2f}"
        note = f"  ({bar['note']})" if bar["note"] else ""
        write_line(f"{bar['verdict']:<12} {bar['name']}: {value}, {bar['direction']} {bar['required']:g}{note}")


def _shown(value: float | None) -> str:
    return f"{'':>8}" if value is None else f"{value:>8.2f}"


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: no such folder; the workers are in benchmarks/peers of a checkout")
    return path
