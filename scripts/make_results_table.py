"""Write the README's results from the committed result file, so that no number in it is typed by hand.

scripts/make_results_table.py           rewrite the README between its two markers
scripts/make_results_table.py --check   change nothing; status 1 where the README says something else
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
_NOTHING = "No result is committed yet: `python benchmarks/bench_decode.py` measures one."


def results_section(summary: Mapping[str, Any] | None) -> str:
    """Return the text between the markers.

    Args:
        summary: Content of ``benchmarks/results/decode.json``; ``None`` where there is no such file.
    """
    if summary is None:
        return _NOTHING
    return "\n\n".join((_provenance(summary), _speed_table(summary), _bar_table(summary)))


def replace_section(text: str, section: str) -> str:
    """Return a page with another text between its markers.

    Args:
        text: The page.
        section: The new text.

    Raises:
        ValueError: The page has not exactly one of each marker, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the page must hold {BEGIN} and after it {END}, once each")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def _provenance(summary: Mapping[str, Any]) -> str:
    machine, settings = summary["machine"], summary["settings"]
    revision = (machine["git_revision"] or "unknown")[:10]
    identical = summary["identical_outputs"]["greedy"]
    return (
        f"{summary['num_prompts_measured']} prompts in five kinds, up to {settings['max_tokens']} tokens each, chat "
        f"template, end-of-sequence respected; {machine['cpu_model']}, {machine['num_available_cores']} cores, "
        f"{machine['started_at'][:10]}, revision {revision}. Greedy outputs identical over our methods: "
        f"{identical['num_identical']} of {identical['num_compared']} prompts. Ratios are of totals within the run, "
        "with 95% intervals over prompts."
    )


def _speed_table(summary: Mapping[str, Any]) -> str:
    greedy, sampled = summary["greedy"], summary["sampled"]
    rows = [
        "| | tokens/s, greedy | over our AR on 1 core | tokens/s, T = 0.7 | accepted | length | outcome predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in greedy["engines"].items():
        cells = [
            summary["engines"][name]["label"],
            f"{found['tokens_per_s']:.1f}",
            _ratio(greedy["speedups"].get(f"{name} / ar"), is_base=name == "ar"),
            _number(sampled["engines"].get(name, {}).get("tokens_per_s"), ".1f"),
            _rate(found, "acceptance_rate", ".0%"),
            _rate(found, "mean_acceptance_length", ".2f"),
            _rate(found, "cache_hit_rate", ".0%"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _bar_table(summary: Mapping[str, Any]) -> str:
    rows = ["| to reach | bound | measured | |", "|---|---|---|---|"]
    for bar in summary["bars"]:
        sign = "≥" if bar["direction"] == "at least" else "≤"
        note = f" ({bar['note']})" if bar["note"] else ""
        rows.append(
            f"| {bar['name']} | {sign} {bar['required']:g} | {_number(bar['value'], '.2f')}{note} | {bar['verdict']} |"
        )
    return "\n".join(rows)


def _ratio(ratio: Mapping[str, float] | None, *, is_base: bool) -> str:
    if is_base:
        return "1"
    return f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "–"


def _rate(found: Mapping[str, Any], field: str, form: str) -> str:
    """Show a rate of speculation; an engine that has none (AR, a peer) reports 0 or nothing."""
    return _number(found.get(field) if found.get("acceptance_rate") else None, form)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def main() -> int:
    """Rewrite or check the README; the status is 1 where a check found a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the README differs")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "decode.json")
    parser.add_argument("--page", type=Path, default=ROOT / "README.md")
    args = parser.parse_args()
    summary = json.loads(args.results.read_text(encoding="utf-8")) if args.results.exists() else None
    page = args.page.read_text(encoding="utf-8")
    made = replace_section(page, results_section(summary))
    if args.check:
        if made != page:
            sys.stderr.write(f"{args.page}: differs from {args.results}; run scripts/make_results_table.py\n")
        return int(made != page)
    args.page.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
