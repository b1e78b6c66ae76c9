"""``forerun bench gpu``: a device's bandwidth, and every decoding method on it by batch and context."""

import argparse
from dataclasses import replace
from typing import Any

from forerun.cli.console import write_json, write_line
from forerun.cli.engine_options import add_engine_options, engine_config
from forerun.cli.options import Commands, add_command, add_json_option, add_number, output_file

_EXAMPLES = """examples:
  forerun bench gpu --device cuda --target inflated:8e9:default --draft inflated:1e9:default --json gpu.json
  forerun bench gpu --graphs eager --dtype float32 --batch-sizes 1 --tokens 16 --micro-mib 16   # on a CPU: does it run?
"""


def add_parser(themes: Commands) -> argparse.ArgumentParser:
    """Add the theme to ``forerun bench``."""
    parser = add_command(
        themes,
        "gpu",
        summary="bandwidth of a device, and every decoding method on it",
        description="Measures copies and matrix products, then AR, SD, SSD and auto by batch and context, against the "
        "time\nin which the weights could be read. Runs on a CPU too, with --graphs eager.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--methods", default="none,ssd,sequential,auto", metavar="A,B", help="(default: %(default)s)")
    parser.add_argument("--batch-sizes", default="1,4,16,32", metavar="N,N", help="(default: %(default)s)")
    parser.add_argument(
        "--contexts",
        default="512",
        metavar="N,N",
        help="tokens of a prompt; the first with every batch, others with first and last (default: %(default)s)",
    )
    parser.add_argument(
        "--peers", action="store_true", help="also measure transformers, on the same device and weights"
    )
    add_number(parser, "--tokens", 128, "tokens decoded by each request")
    add_number(parser, "--micro-mib", 1024, "buffer that is copied, in MiB")
    add_number(parser, "--matmul-size", 8192, "rows and columns of the matrices that are multiplied")
    add_number(parser, "--time-limit", 480.0, "begin no case that would not be done after so many seconds")
    parser.add_argument("--plot", type=output_file, metavar="FILE", help="draw the results (needs forerun[plot])")
    add_engine_options(parser, without=("method", "max_num_seqs", "max_model_len"))
    add_json_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, write what there is after each part, and print."""
    from forerun.recipes.device_benchmark import DeviceBenchmarkConfig, device_benchmark
    from forerun.recipes.device_plot import save_device_plot

    config = DeviceBenchmarkConfig(
        engine=replace(engine_config(args), method="none"),
        methods=tuple(args.methods.split(",")),
        batch_sizes=_numbers("--batch-sizes", args.batch_sizes),
        context_tokens=_numbers("--contexts", args.contexts),
        max_tokens=args.tokens,
        with_peers=args.peers,
        micro_bytes=args.micro_mib * 2**20,
        matmul_size=args.matmul_size,
        time_limit_s=args.time_limit,
    )
    result: dict[str, Any] = {}
    drawn: set[str] = set()
    for result in device_benchmark(config, report=write_line):
        if args.json is not None:
            write_json(args.json, result)
        methods = {case["method"] for case in result["cases"]}
        if args.plot is not None and (methods != drawn or (methods and result["is_complete"])):
            save_device_plot(result, args.plot)
            drawn = methods
    _print(result)
    return 0


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _numbers(option: str, text: str) -> tuple[int, ...]:
    from forerun.core.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text}: must be whole numbers with commas between, such as 1,4,16") from error


def _print(result: dict[str, Any]) -> None:
    from forerun.recipes.device_bars import Bar

    write_line(f"\n{result['about']}")
    write_line(f"device {result['device']}; weights read once in {result['floor']['pass_ms']:.2f} ms")
    write_line(
        f"{'method':<22}{'batch':>6}{'context':>9}{'tokens/s':>11}{'over AR':>9}{'step ms':>9}{'verify ms':>11}"
        f"{'draft ms':>10}{'idle ms':>9}  hits"
    )
    for case in result["cases"]:
        ratio = "" if case["over_ar"] is None else f"{case['over_ar']:.2f}x"
        times = (("step_ms", 9), ("verify_ms", 11), ("draft_busy_ms", 10), ("idle_ms", 9))
        write_line(
            f"{case['method']:<22}{case['batch']:>6}{case['context']:>9}{case['tokens_per_s']:>11.1f}{ratio:>9}"
            + "".join(f"{_number(case.get(name)):>{width}}" for name, width in times)
            + f"  {_number(case.get('cache_hit_rate'))}"
        )
    if result["left_out"]:
        write_line(f"left out: {'; '.join(result['left_out'])}")
    write_line()
    for bar in result["bars"]:
        write_line(Bar(**bar).line)
