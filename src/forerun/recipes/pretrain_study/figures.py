"""The charts of a report: which of its numbers are points of which series."""

from collections.abc import Sequence
from html import escape
from typing import Any

from forerun.recipes.pretrain_study.chart import Axes, Point, Series, chart_svg


def figures(found: dict[str, Any]) -> list[str]:
    """Return each chart as a ``<figure>``.

    Args:
        found: From :func:`forerun.recipes.pretrain_study.findings.find`.
    """

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
