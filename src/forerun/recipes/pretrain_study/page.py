"""The report as one HTML page that needs nothing else: claims first, then charts, then every run."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from forerun.recipes.pretrain_study.figures import figures
from forerun.recipes.pretrain_study.study_file import RUNS_FOLDER

_PAPER_TOKENS = 209_715_200
"""Unique tokens of the paper's main study."""

_FEW_DOCUMENTS = 20

_MINUS = "\N{MINUS SIGN}"
_CLASSES = {"holds": "holds", "does not hold": "fails", "open": "open"}


def page_html(found: dict[str, Any]) -> str:
    """Return the page.

    Args:
        found: From :func:`forerun.recipes.pretrain_study.findings.find`.
    """
    style = resources.files("forerun.recipes.pretrain_study").joinpath("page.css").read_text(encoding="utf-8")
    study, test = found["study"], found["test"]
    title = f"Pre-training when data is the limit: {study['scale']['name']}"
    times = len(test["opened_at"])
    opened = f"once, at {test['opened_at'][0]}" if times == 1 else f"{times} times, last at {test['opened_at'][-1]}"
    few = test["num_documents"] < _FEW_DOCUMENTS
    caution = " So few documents make rough intervals: take a corpus of more." if few else ""
    body = f"""<h1>{escape(title)}</h1>
<p class="soft">{study["scale"]["unique_tokens"]:,} tokens of <code>{escape(study["corpus"])}</code>
(SHA-256 <code>{study["data_sha256"][:16]}</code>), {study["num_runs"]} runs on {escape(str(study["machine"]["cpu"]))},
{study["machine"]["num_workers"]} at a time, {sum(study["elapsed_s"].values()) / 60:.1f} minutes in the last call.</p>
<p>Settings were chosen on the tune split. Every number below, unless it says tune, is of the test split:
{test["num_documents"]} documents, {test["num_tokens"]:,} tokens, opened {opened}. Brackets and bars are 95 % intervals
over documents, and over seeds and members where there are several.{caution}</p>
<h2>Claims</h2>{_claims(found["claims"], study["scale"]["unique_tokens"])}{_open_ends(found["open_ends"])}
<h2>Charts</h2><p class="soft">Hover for numbers, click for the run.</p>
<div class="charts">{"".join(figures(found))}</div>
<h2>Laws</h2>{_laws(found["laws"])}
<h2>Data efficiency</h2>{_efficiency(found["efficiency"])}
<h2>Students</h2>{_students(found["students"])}
<h2>Tuning</h2>{_tuning(found)}
<h2>Runs</h2>{_runs(found)}"""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body><main>\n{body}\n</main></body>\n</html>\n"
    )


def _claims(claims: Sequence[dict[str, Any]], unique_tokens: int) -> str:
    rows = [
        (
            escape(claim["statement"]),
            escape(claim["paper"]),
            _interval(claim["found"], unit=claim["unit"], is_signed=claim["unit"] == "nats"),
            f'<span class="{_CLASSES[claim["verdict"]]}">{claim["verdict"]}</span>',
            f'<span class="soft">{escape(claim["note"])}</span>',
        )
        for claim in claims
    ]
    ratio = f"{round(_PAPER_TOKENS / unique_tokens):,}"
    note = (
        "<p class='soft'>A claim holds, or does not, where the whole interval says so; else it is open. Differences "
        f"are in nats a token, lower is better. The paper's text is {ratio} times as long.</p>"
    )
    return _table(("claim", "paper", "here", "verdict", "note"), rows, style="cards") + note


def _open_ends(winners: Sequence[dict[str, Any]]) -> str:
    """Return which settings were best at the end of a ladder: a claim is about what was tried."""
    if not winners:
        return ""
    named = "; ".join(
        f"{item['recipe']} {item['size']}{_on_text(item)} ({', '.join(item['ends'])})".replace("_", " ")
        for item in winners
    )
    note = "Best at the end of a ladder, so that something beyond it could be better"
    return f"<p class='soft'>{note}: {escape(named)}.</p>"


def _on_text(item: dict[str, Any]) -> str:
    return f" on {item['unique_tokens']:,} tokens" if item["recipe"] == "more text" else ""


def _students(students: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            item["size"],
            f"{len(item['teacher'])} models" if item["kind"] == "ensemble" else "one model",
            f"{item['share_of_teacher']['total']:.3f}",
            f"{item['share_of_teacher']['without_embeddings']:.3f}",
            _interval(item["loss"], unit=""),
            _interval(_percent(item["kept"]), unit="%")
            if item["kept"]
            else f"{_interval(item['minus_teacher'], unit='nats', is_signed=True)} against its teacher",
            "; ".join(_candidate(candidate) for candidate in item["candidates"]),
        )
        for item in students
    ]
    columns = (
        "student",
        "of",
        "share of parameters",
        "without embeddings",
        "test loss",
        "gain kept",
        "tried: tune loss",
    )
    return _table(columns, rows)


def _percent(interval: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else 100 * value for name, value in interval.items()}


def _candidate(candidate: dict[str, Any]) -> str:
    sampled = candidate.get("sampled_tokens", 0)  # a study of an older release has none
    text = f", {sampled:,} tokens sampled" if sampled else ""
    told = f"weight decay {candidate['weight_decay']:g}{text}: {candidate['tune_loss_nats']:.4f}"
    return f"<strong>{told}</strong>" if candidate.get("is_chosen") else told


def _laws(laws: dict[str, Any]) -> str:
    names = {"regularised": "regularised, limit in size", "joint": "ensembles, limit in members and then in size"}
    rows: list[tuple[str, ...]] = []
    for name, label in names.items():
        for count, law in laws[name].items():
            fit = law["fit"]
            status = "identified" if law["is_identified"] else f"not identified: {'; '.join(law['problems'])}"
            left_out = law.get("leave_one_out") or []
            held_out = law.get("held_out_largest")
            rows.append(
                (
                    label,
                    count.replace("_", " "),
                    _interval(law.get("asymptote"), unit="nats"),
                    _DASH if fit is None else f"{fit['exponent']:.2f}",
                    f"{min(left_out):.3f} to {max(left_out):.3f}".replace("-", _MINUS) if left_out else _DASH,
                    _interval(held_out["predicted_minus_seen"], unit="nats", is_signed=True) if held_out else _DASH,
                    escape(status),
                )
            )
    columns = (
        "law",
        "parameters",
        "limit",
        "exponent",
        "limit, one size left out",
        "largest size, predicted less seen",
        "",
    )
    return _table(columns, rows)


_DASH = "\N{EN DASH}"


def _efficiency(efficiency: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    for name, item in efficiency.items():
        observed = item["observed"]
        if observed is None:
            seen = f"{_DASH} (a limit)"
        elif observed["value"] is None:
            seen = f"more than {item['most_seen']:g}x, the most that was tried"
        elif observed["high"] == 1:
            seen = "no more than 1x: the standard recipe is as good on the same text"
        else:
            seen = _interval(observed, unit="x")
        problems = f"not identified: {'; '.join(item['problems'])}"
        told = _interval(item["extrapolated"], unit="x") if item["extrapolated"] else escape(problems)
        rows.append((escape(name), seen, told))
    note = (
        "<p class='soft'>How many times the text the standard recipe needs for the same loss, tuned as hard. Seen: "
        "between losses it reached. Extrapolated: by its law in the text.</p>"
    )
    return note + _table(("method", "seen", "extrapolated"), rows)


def _tuning(found: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    for recipe in ("standard", "more_text", "regularised"):
        for item in found[recipe]:
            settings = item["settings"]
            ends = f" ({', '.join(item['open_ends'])})".replace("_", " ") if item["open_ends"] else ""
            rows.append(
                (
                    "regularised" if recipe == "regularised" else "standard",
                    item["size"],
                    f"{item['unique_tokens']:,}",
                    f"{settings['learning_rate']:g}",
                    f"{settings['weight_decay']:g}",
                    f"{settings['num_epochs']:g}",
                    f"{item['tune_loss_nats']:.4f}",
                    _interval(item["loss"], unit=""),
                    f"{item['num_evaluated']}",
                    escape(item["standing"] + ends),
                )
            )
    columns = (
        "recipe",
        "size",
        "text",
        "learning rate",
        "weight decay",
        "epochs",
        "tune loss",
        "test loss",
        "tried",
        "certificate",
    )
    return _table(columns, rows)


def _runs(found: dict[str, Any]) -> str:
    head = ("run", "parameters", "rate", "decay", "epochs", "text", "seed", "train", "tune", "bits a byte", "test")
    rows = [
        (
            f'<a href="{RUNS_FOLDER}/{name}/result.json"><code>{name}</code></a>',
            f"{run['num_params']['without_embeddings']:,}",
            f"{run['settings']['learning_rate']:g}",
            f"{run['settings']['weight_decay']:g}",
            f"{run['settings']['num_epochs']}",
            f"{run['settings']['unique_tokens'] or 0:,}",
            f"{run['settings']['seed']}",
            f"{run['train_loss_nats']:.3f}",
            f"{run['tune_loss_nats']:.4f}",
            f"{run['tune_bits_per_byte']:.3f}",
            f"{run['test_loss_nats']:.4f}",
        )
        for name, run in found["runs"].items()
    ]
    return _table(head, rows, anchors=[f"run-{name}" for name in found["runs"]])


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, anchors: Sequence[str] = (), style: str = "plain"
) -> str:
    """Return a table; the style ``cards`` turns rows into cards on a narrow screen."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines: list[str] = []
    for place, row in enumerate(rows):
        anchor = f' id="{anchors[place]}"' if anchors else ""
        cells = "".join(_cell(cell, label) for cell, label in zip(row, head, strict=True))
        lines.append(f"<tr{anchor}>{cells}</tr>")
    return f'<div class="scroll"><table class="{style}"><tr>{top}</tr>{"".join(lines)}</table></div>'


def _cell(cell: str, label: str) -> str:
    kind = ' class="number"' if cell[:1].isdigit() or cell[:1] in {"+", "[", _MINUS} else ""
    return f'<td{kind} data-label="{escape(label, quote=True)}">{cell}</td>'


def _interval(interval: dict[str, Any] | None, *, unit: str, is_signed: bool = False) -> str:
    if interval is None:
        return _DASH

    def number(value: float | None) -> str:
        if value is None:
            return "beyond"
        digits = 4 if unit in {"nats", ""} else 2 if unit == "x" else 0
        text = f"{value:+.{digits}f}" if is_signed else f"{value:.{digits}f}"
        return text.replace("-", _MINUS)

    ends = f"[{number(interval['low'])}, {number(interval['high'])}]"
    suffix = {"x": "x", "%": " %"}.get(unit, "")
    return f"{number(interval['value'])}{suffix if interval['value'] is not None else ''} {ends}"
