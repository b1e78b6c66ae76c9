"""A certificate as a page: the bound, its neighbours, and the ledger as a picture. One file, nothing loaded."""

from html import escape
from pathlib import Path
from typing import Final

from forerun.bounds.result import CertifyResult
from forerun.core.errors import ConfigError

_WIDTH: Final = 760
_ROW: Final = 26
_LABEL: Final = 200
_COLOURS: Final = ("#2f6f9f", "#b8860b", "#6b8e23", "#8b5a8c", "#a0522d", "#4f7f7f", "#7f7f7f")
_STYLE: Final = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 820px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: 2px 14px 2px 0; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums } .verdict { font-size: 1.5em }
"""


def _bar(row: int, name: str, value: float, most: float, text: str, colour: str) -> str:
    y, width = row * _ROW, max(1.0, (_WIDTH - _LABEL - 90) * value / most)
    return (
        f'<text x="{_LABEL - 10}" y="{y + 17}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="{_LABEL}" y="{y + 4}" width="{width:.1f}" height="{_ROW - 8}" fill="{colour}"/>'
        f'<text x="{_LABEL + width + 8:.1f}" y="{y + 17}">{escape(text)}</text>'
    )


def _chart(title: str, bars: list[tuple[str, float, str]]) -> str:
    most = max(value for _, value, _ in bars) or 1.0
    rows = [
        _bar(row, name, value, most, text, _COLOURS[row % len(_COLOURS)])
        for row, (name, value, text) in enumerate(bars)
    ]
    return (
        f'<svg role="img" aria-label="{escape(title)}" width="{_WIDTH}" height="{len(bars) * _ROW}" '
        f'font-size="13" fill="#222">{"".join(rows)}</svg>'
    )


def render_report(task: str, result: CertifyResult) -> str:
    """Return the page as HTML.

    Args:
        task: Name of the problem.
        result: What was certified.
    """
    bounds = result.bounds
    risks = [
        ("training error", result.empirical_risk),
        ("binomial tail", bounds.binomial),
        ("kl", bounds.kl),
        ("Catoni", bounds.catoni),
        ("McAllester", bounds.mcallester),
        ("chance", result.chance),
    ]
    if result.holdout is not None:
        risks.insert(1, ("hold-out bound (its own delta)", result.holdout["risk_bound"]))
    verdict = "vacuous: no better than chance" if result.is_vacuous else "not vacuous"
    ledger = "".join(
        f'<tr><td>{escape(line.name)}</td><td class="number">{line.bits:.2f}</td><td>{escape(line.why)}</td></tr>'
        for line in result.ledger
    )
    paid = [(line.name, line.bits, f"{line.bits:.1f} bits") for line in result.ledger if line.bits > 0]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Certificate: {escape(task)}</title><style>{_STYLE}</style>
<h1>Certificate: {escape(task)}</h1>
<p class="verdict">Error at most <b>{result.risk_bound:.2%}</b> with probability {1 - result.delta:g} ({verdict}).</p>
<p>{result.num_errors} errors among {result.num_samples} training examples, {result.code_length_bits:.1f} bits, coded in
{result.message_bytes} bytes. Grid {escape(result.grid_sha256)}.</p>
<h2>Bounds</h2>
{_chart("bounds", [(name, value, f"{value:.2%}") for name, value in risks])}
<h2>Where the bits go</h2>
{_chart("ledger", paid)}
<h2>Ledger</h2>
<table><tr><th>line</th><th>bits</th><th>why</th></tr>{ledger}</table>
</html>
"""


def write_report(path: Path, task: str, result: CertifyResult) -> None:
    """Write the page.

    Raises:
        ConfigError: The file can't be written.
    """
    try:
        path.write_text(render_report(task, result), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name a file in a folder of yours") from error
