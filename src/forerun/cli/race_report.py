"""What a race found, as a table and a few sentences; and its progress as plain lines where there is no screen."""

import io
import re
from collections.abc import Callable
from typing import Final

from rich import box
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.table import Table
from rich.text import Text

from forerun.cli.race_screen import NAMES, RaceScreen
from forerun.cli.streaming import write_text
from forerun.recipes.race import RaceConfig, RaceObserver
from forerun.recipes.race_result import Divergence, Racer, RaceResult, RacerTotals, RaceRun

_NONE: Final = "–"
_SVG_FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""Rich's picture without its fonts from the network: a picture of results must not fetch anything."""
_SVG_WIDTH: Final = 120
_SVG_HEIGHT: Final = 24


def print_report(result: RaceResult, *, console: Console) -> None:
    """Write the table and the verdict on the outputs.

    Args:
        result: The race.
        console: Colours where it is a terminal, plain text where it is not.
    """
    console.print(_table(result))
    for sentence in _verdict(result):
        console.print(sentence, soft_wrap=True)
    for warning in result.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def race_svg(config: RaceConfig, result: RaceResult) -> str:
    """Return a picture of the panes at the end, the table and the verdict, as SVG."""
    console = Console(
        file=io.StringIO(), record=True, force_terminal=True, color_system="truecolor", highlight=False,
        width=_SVG_WIDTH, height=_SVG_HEIGHT,
    )  # fmt: skip
    RaceScreen(config, console=console).print_final(result)
    print_report(result, console=console)
    return console.export_svg(title="forerun race", code_format=_SVG_FORMAT)


def _table(result: RaceResult) -> Table:
    totals = result.totals
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for racer in totals:
        table.add_column(NAMES[racer], justify="right", min_width=6)

    def row(name: str, cell: Callable[[Racer, RacerTotals], str], *, style: str = "") -> None:
        table.add_row(name, *(cell(racer, total) for racer, total in totals.items()), style=style)

    def rate(value: Callable[[RacerTotals], float], *racers: Racer) -> Callable[[Racer, RacerTotals], str]:
        return lambda racer, total: f"{value(total):.1%}" if racer in racers else _NONE

    row("tokens/s", lambda _, total: f"{total.tokens_per_s:.1f}", style="bold")
    row("speed-up over AR", lambda racer, _: _ratio(result, racer), style="bold")
    row("draft tokens accepted", rate(lambda total: total.acceptance_rate, "sd", "ssd"))
    row("mean acceptance length (tokens a pass)", lambda _, total: f"{total.mean_acceptance_length:.2f}")
    row("outcomes predicted (cache hits)", rate(lambda total: total.cache_hit_rate, "ssd"))
    row("share of time not verifying", rate(lambda total: total.non_verify_share, "ar", "sd", "ssd"))
    row("  the same, in rounds after a hit", rate(lambda total: total.non_verify_share_hit, "ssd"))
    row("cores", lambda _, total: str(total.cores))
    row("tokens", lambda _, total: str(total.num_tokens))
    return table


def _ratio(result: RaceResult, racer: Racer) -> str:
    if "ar" not in result.runs:
        return _NONE
    ratio = 1.0 if racer == "ar" else result.speedup[f"{racer}_over_ar"]
    return _NONE if ratio is None else f"{ratio:.2f}x"


def _verdict(result: RaceResult) -> list[Text]:
    if len(result.runs) < 2:
        return []
    num_prompts = len(result.prompts)
    over = "the prompt" if num_prompts == 1 else f"each of the {num_prompts} prompts"
    divergence = result.divergence
    if divergence is None:
        return [Text(f"Outputs: identical, token for token, on {over}.", style="green")]
    sentences = [Text(f"Outputs: they differ, first at {_place(result, divergence)}.")]
    if result.expects_identity:
        sentences[0].stylize("bold red")
    else:
        sentences.append(
            Text("That is as it must be: verification=rejection samples the same law with other random numbers.")
        )
    return sentences


def _place(result: RaceResult, divergence: Divergence) -> str:
    prompt = result.prompts[divergence.prompt_index]
    what = ", ".join(
        f"{NAMES[racer]} {'has ended' if token_id is None else f'has {divergence.texts[racer]!r} ({token_id})'}"
        for racer, token_id in divergence.token_ids.items()
    )
    return f"prompt {divergence.prompt_index + 1} ({prompt.kind}), token {divergence.position + 1}: {what}"


class PlainProgress(RaceObserver):
    """An observer that writes one line for each thing done."""

    def __init__(self, config: RaceConfig) -> None:
        self._config = config

    def loading(self, racer: Racer) -> None:
        """Say so."""
        write_text(f"{racer}: loading\n")

    def warming_up(self, racer: Racer) -> None:
        """Say so."""
        write_text(f"{racer}: warming up\n")

    def timed(self, run: RaceRun) -> None:
        """Write what came of a prompt."""
        prompts = self._config.prompts
        write_text(
            f"{run.racer}: prompt {run.prompt_index + 1}/{len(prompts)} ({prompts[run.prompt_index].kind}): "
            f"{len(run.tokens)} tokens, {run.metrics.tokens_per_s:.1f} tokens/s\n"
        )
