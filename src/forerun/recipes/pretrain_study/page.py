"""The report as one HTML page that needs nothing else: claims first, then charts, then every run."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from forerun.recipes.pretrain_study.chart import Axes, Point, Series, chart_svg
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
<h2>Claims</h2>{_claims(found["claims"], study["scale"]["unique_tokens"])}
<h2>Charts</h2><p class="soft">Hover for numbers, click for the run.</p>
<div class="charts">{"".join(_charts(found))}</div>
<h2>Laws</h2>{_laws(found["laws"])}
<h2>Data efficiency</h2>{_efficiency(found["efficiency"])}
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
    return _table(("claim", "paper", "here", "verdict", ""), rows) + note


def _charts(found: dict[str, Any]) -> list[str]:
    def tuned(name: str, label: str) -> Series:
        return Series(name=label, points=[_tuned_point(item) for item in found[name]])

    counts = [
        Series(name=f"{item['size']} members", points=[_mean_of(item, count, x=count) for count in _counts(item)])
        for item in found["ensembles"]
    ]
    deepest = min(len(item["curve"]) for item in found["ensembles"])
    plane = [
        Series(
            name=f"{count} member{'s' if count > 1 else ''}",
            points=[_mean_of(item, count, x=_params(item)) for item in found["ensembles"]],
        )
        for count in sorted({1, 2, deepest})
    ]
    limits = Series(
        name="limit in members (not observed)",
        points=[
            _point(_params(item), item["limit"], f"limit of {item['size']} ensembles", item["members"][0])
            for item in found["ensembles"]
        ],
        is_dashed=True,
    )
    students = [
        Series(
            name=f"{item['size']} student of {'an ensemble' if item['kind'] == 'ensemble' else 'one model'}",
            points=[_point(_params(item), item["loss"], f"student {item['size']}, {item['kind']}", item["run"])],
        )
        for item in found["students"]
    ]
    regularised = tuned("regularised", "regularised single")
    parameters = Axes(x_label="parameters without embeddings", y_label="test loss, nats a token")
    members = Axes(x_label="members", y_label=parameters.y_label, is_x_log=False)
    tokens = Axes(x_label="unique tokens of the standard recipe", y_label=parameters.y_label)
    more = sorted([_best_standard(found), *found["more_text"]], key=lambda item: item["unique_tokens"])
    first = more[0]["unique_tokens"]
    best = min(found["ensembles"], key=lambda item: item["curve"][-1]["value"])
    methods = [
        Series(
            name="standard",
            points=[
                _point(item["unique_tokens"], item["loss"], f"standard {item['size']}", item["runs"][0])
                for item in more
            ],
        ),
        Series(
            name="regularised single, on the limited text",
            points=[
                min(
                    (
                        _point(first, item["loss"], f"regularised {item['size']}", item["runs"][0])
                        for item in found["regularised"]
                    ),
                    key=lambda point: point.y,
                )
            ],
        ),
        Series(
            name=f"ensemble of {len(best['curve'])}, on the limited text",
            points=[_point(first, best["curve"][-1], f"ensemble of {best['size']}", best["members"][0])],
        ),
    ]
    ensembles = Series(
        name="ensemble, parameters of all members",
        points=[
            _point(
                _params(item) * len(item["curve"]), item["curve"][-1], f"ensemble of {item['size']}", item["members"][0]
            )
            for item in found["ensembles"]
        ],
    )
    return [
        _figure("Loss against size", [tuned("standard", "standard (weight decay 0.1)"), regularised], parameters),
        _figure("Loss against the number of members", counts, members),
        _figure("The joint plane: size and members", [*plane, limits], parameters),
        _figure(
            "Data efficiency", methods, tokens, "Where the standard recipe reaches a loss, so much text it is worth."
        ),
        _figure("Distillation", [regularised, ensembles, *students], parameters),
    ]


def _best_standard(found: dict[str, Any]) -> dict[str, Any]:
    return min(found["standard"], key=lambda item: item["tune_loss_nats"])


def _figure(title: str, series: Sequence[Series], axes: Axes, note: str = "") -> str:
    text = f"<p>{escape(note)}</p>" if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart_svg(series, axes, title=title)}{text}</figure>"


def _params(item: dict[str, Any]) -> float:
    return float(item["num_params"]["without_embeddings"])


def _point(x: float, interval: dict[str, Any], name: str, run: str) -> Point:
    return Point(
        x=x,
        y=interval["value"],
        low=interval["low"],
        high=interval["high"],
        link=f"#run-{run}",
        hover=f"{name}: {interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]",
    )


def _tuned_point(item: dict[str, Any]) -> Point:
    settings = item["settings"]
    name = (
        f"{item['size']}, learning rate {settings['learning_rate']:g}, weight decay {settings['weight_decay']:g}, "
        f"{settings['num_epochs']:g} epochs"
    )
    return _point(_params(item), item["loss"], name, item["runs"][0])


def _counts(item: dict[str, Any]) -> range:
    return range(1, len(item["curve"]) + 1)


def _mean_of(item: dict[str, Any], count: int, *, x: float) -> Point:
    """Return the point of ensembles of so many members."""
    return _point(x, item["curve"][count - 1], f"{item['size']}, {count} of the members", item["members"][count - 1])


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
                    f"{min(left_out):.3f} to {max(left_out):.3f}" if left_out else _DASH,
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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, anchors: Sequence[str] = ()) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines: list[str] = []
    for place, row in enumerate(rows):
        anchor = f' id="{anchors[place]}"' if anchors else ""
        cells = "".join(
            f'<td class="number">{cell}</td>' if cell[:1].isdigit() or cell[:1] in "+[" + _MINUS else f"<td>{cell}</td>"
            for cell in row
        )
        lines.append(f"<tr{anchor}>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{top}</tr>{"".join(lines)}</table></div>'


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
