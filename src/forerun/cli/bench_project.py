"""``forerun bench project``: what SSD should reach on GPUs that are not at hand."""

import argparse
from typing import Any

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number

_EXAMPLES = """examples:
  forerun bench project
  forerun bench project --target-efficiency 0.7 --overhead-share 0.2
  forerun bench project --bandwidth 4.8 --json h200.json    # H200: 4.8 TB/s
"""


def add_parser(themes: Commands) -> argparse.ArgumentParser:
    """Add the theme to ``forerun bench``."""
    parser = add_command(
        themes,
        "project",
        summary="tokens per second to expect of 70B + 1B on 4+1 GPUs",
        description="Projects Llama-3.1-70B with 3.2-1B from bytes over bandwidth and published acceptance, under "
        "stated\nassumptions, and puts the published numbers beside it. Nothing is measured.",
        epilog=_EXAMPLES,
    )
    add_number(parser, "--target-gpus", 4, "GPUs that share the target; the draft has one more")
    add_number(parser, "--bandwidth", 3.35, "memory bandwidth of one GPU, in TB/s")
    add_number(parser, "--target-efficiency", 0.85, "share of the bandwidth that the target's passes reach")
    add_number(parser, "--draft-efficiency", 0.5, "share of the bandwidth that the draft's passes reach")
    add_number(parser, "--overhead-share", 0.08, "share of a step that is neither verification nor drafting")
    add_number(parser, "--context", 1024, "cached tokens that every pass reads")
    add_number(parser, "--bytes-per-weight", 2.0, "2 for bfloat16, 1 for FP8")
    add_json_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the projections with their assumptions."""
    from forerun.recipes.projection import Hardware, projection_report

    hardware = Hardware(
        num_target_gpus=args.target_gpus,
        bandwidth_bytes_per_s=1e12 * args.bandwidth,
        target_efficiency=args.target_efficiency,
        draft_efficiency=args.draft_efficiency,
        overhead_share=args.overhead_share,
    )
    report = projection_report(hardware, context_tokens=args.context, bytes_per_weight=args.bytes_per_weight)
    _print(report)
    if args.json is not None:
        write_json(args.json, report)
    return 0


def _print(report: dict[str, Any]) -> None:
    write_line(f"{report['target']} with {report['draft']}, batch 1, tokens/s")
    write_line(f"  {'':<38} {'AR':>7} {'SD':>7} {'SSD':>7}   verify ms  draft round / verify")
    for name, case in report["projections"].items():
        found = case["result"]
        write_line(
            f"  {name:<38} {found['ar']:>7.1f} {found['sd']:>7.1f} {found['ssd']:>7.1f}   {found['verify_ms']:>9.2f}  "
            f"{found['draft_share']:>20.2f}"
        )
    for source in ("paper", "reproduction"):
        rates = " ".join(f"{report['published'][method][source]:>7.1f}" for method in ("ar", "sd", "ssd"))
        write_line(f"  {'published: ' + source:<38} {rates}")
    write_line("\nthe reproduction's tokens/s if its steps were verifications only, by batch size")
    write_line("  " + "  ".join(f"{batch}: {rate:.0f}" for batch, rate in report["verify_bound"].items()))
    write_line("\nassumptions")
    for sentence in report["assumptions"]:
        write_line(f"- {sentence}")
