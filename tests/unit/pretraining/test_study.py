"""The study from end to end, tiny: every run once, the test split opened once, a page that says what was found."""

import itertools
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from forerun.cli.main import main
from forerun.core.errors import CheckpointError, ConfigError
from forerun.pretraining import prepared_corpus
from forerun.pretraining.ensemble import evaluate_ensemble
from forerun.pretraining.evaluation import held_out_losses, held_out_token_nats
from forerun.pretraining.prepared_corpus import open_corpus, open_test
from forerun.pretraining.run_store import read_run
from forerun.recipes.pretrain_study import scale as scales
from forerun.recipes.pretrain_study.chart import Axes, Point, Series, chart_svg
from forerun.recipes.pretrain_study.findings import find
from forerun.recipes.pretrain_study.measure import measure
from forerun.recipes.pretrain_study.page import page_html
from forerun.recipes.pretrain_study.reproduce import reproduce
from forerun.recipes.pretrain_study.scale import StudyScale
from forerun.recipes.pretrain_study.study_file import read_study

TINY = StudyScale(
    name="tiny",
    most_bytes=None,
    vocab_size=300,
    unique_tokens=600,
    multiples=(1, 2),
    sizes=("6k", "25k"),
    sequence_tokens=16,
    batch_sequences=8,
    tune_tokens=400,
    test_tokens=4000,
    learning_rates=(1.2e-2,),
    weight_decays=(0.4, 1.6),
    standard_epochs=(1, 2),
    regularised_epochs=(1, 2),
    start=(1.2e-2, 0.4, 1, 1),
    num_seeds=2,
    num_members=3,
    student_sizes=("6k",),
    sampled_tokens=256,
    num_replicates=60,
)


@pytest.fixture(scope="module")
def study_folder(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    patch = pytest.MonkeyPatch()
    opened = []
    for name in ("open_tokens",):
        real = getattr(prepared_corpus, name)
        patch.setattr(
            prepared_corpus, name, lambda where, record, real=real: opened.append(record.file) or real(where, record)
        )
    reproduce(folder, TINY, data=prepared, num_workers=1)
    patch.undo()
    assert set(opened) == {"train.bin", "tune.bin"}, "only the report opens the test split"
    assert main(["pretrain", "report", str(folder), "--json", str(folder / "copy.json")]) == 0
    return folder


@pytest.fixture(scope="module")
def found(study_folder):
    return json.loads((study_folder / "report.json").read_text())


def test_every_part_is_there_and_refers_to_runs_that_are(study_folder, found):
    study = read_study(study_folder)
    assert [item.size for item in study.standard] == [item.size for item in study.regularised] == ["6k", "25k"]
    assert [item.unique_tokens for item in study.more_text] == [1200]
    assert [(item.kind, len(item.teacher)) for item in study.students] == [("ensemble", 3), ("self", 1)]
    assert {len(item.members) for item in study.ensembles} == {3}
    for item in study.students:
        weight = read_run(study_folder / "runs" / item.run).identity["teacher"]["weight"]
        assert weight == (1.0 if item.kind == "ensemble" else 0.8)
        kinds = [(candidate["weight_decay"], candidate["sampled_tokens"]) for candidate in item.candidates]
        real = sorted(item.candidates[:-1], key=lambda candidate: candidate["tune_loss_nats"])
        assert kinds[-1] == (real[0]["weight_decay"], 256), "sampled text is tried with the better decay"
        assert {sampled for _, sampled in kinds[:-1]} == {0}
        [chosen] = [candidate for candidate in item.candidates if candidate["is_chosen"]]
        assert chosen["tune_loss_nats"] == min(candidate["tune_loss_nats"] for candidate in item.candidates)
    assert set(study.all_runs()) == set(found["runs"]) <= {run.name for run in (study_folder / "runs").iterdir()}
    assert study.num_runs == len(list((study_folder / "runs").glob("*/result.json")))
    for item in study.standard:
        assert item.tuning["best"]["weight_decay"] == 0.1
        assert item.tuning["tune_loss_nats"] == min(
            item.tuning["tune_loss_nats"], *(other["tune_loss_nats"] for other in item.tuning["neighbours"])
        )


def test_a_study_that_is_done_is_not_made_again(study_folder, prepared, monkeypatch, capsys):
    monkeypatch.setattr("forerun.pretraining.train.TrainingLoop", None)
    monkeypatch.setitem(scales.SCALES, "smoke", TINY)
    before = read_study(study_folder)
    command = ["pretrain", "reproduce", "--scale", "smoke", "--out", str(study_folder), "--data", str(prepared)]
    assert main([*command, "--workers", "1"]) == 0
    written = capsys.readouterr().out
    assert f"{before.num_runs} runs in" in written
    assert "The joint limit is worth at least 4 times the text: not identified (paper: 5.17x)" in written
    again = read_study(study_folder)
    assert (again.standard, again.ensembles, again.students) == (before.standard, before.ensembles, before.students)


def test_the_test_split_is_opened_once_and_the_report_says_so(study_folder, found, monkeypatch):
    assert len(found["test"]["opened_at"]) == 1
    monkeypatch.setattr("forerun.recipes.pretrain_study.measure.open_test", None)
    assert main(["pretrain", "report", str(study_folder)]) == 0
    again = json.loads((study_folder / "report.json").read_text())
    assert {**again, "study": found["study"]} == found, "but for the time the study took"
    assert json.loads((study_folder / "copy.json").read_text()) == found
    assert f"opened once, at {found['test']['opened_at'][0]}" in (study_folder / "report.html").read_text()


def test_losses_of_the_report_are_those_of_a_plain_evaluation(study_folder, found, prepared):
    stream, num_bytes = open_test(prepared, TINY.test_tokens)
    assert found["test"]["num_tokens"] == len(stream.ids) - 1
    corpus = open_corpus(prepared)
    tested = prepared_corpus.PreparedCorpus(
        manifest=corpus.manifest, tokenizer=corpus.tokenizer, train=corpus.train, tune=stream
    )
    for point in found["ensembles"]:
        folders = [study_folder / "runs" / name for name in point["members"]]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prepared_corpus.PreparedCorpus, "tune_part", lambda self, count: (stream, num_bytes))
            expected = evaluate_ensemble(folders, tested)
        assert point["curve"][2]["value"] == pytest.approx(expected.by_count["probability"][2].loss_nats, abs=1e-5)
        assert point["logit_average"]["value"] == pytest.approx(expected.by_count["logit"][2].loss_nats, abs=1e-5)
        alone = np.mean([loss.loss_nats for loss in expected.member_losses])
        assert point["curve"][0]["value"] == pytest.approx(alone, abs=1e-5)
        for interval in point["curve"]:
            assert interval["low"] <= interval["value"] <= interval["high"]


def test_claims_agree_with_their_points(found):
    claims = {claim["statement"]: claim for claim in found["claims"]}
    standard, regularised = ([item["loss"]["value"] for item in found[name]] for name in ("standard", "regularised"))
    rise = claims["Standard: the largest model is no better than a smaller one"]
    assert rise["found"]["value"] == pytest.approx(standard[1] - standard[0], abs=1e-9)
    step = claims["Regularised: the loss falls with every step up in size"]
    assert step["found"]["value"] == pytest.approx(regularised[1] - regularised[0], abs=1e-9)
    for claim in found["claims"]:
        assert claim["verdict"] in {"holds", "does not hold", "open"}
        if claim["unit"] == "nats" and claim["verdict"] == "holds" and "largest" not in claim["statement"]:
            assert claim["found"]["high"] < 0
    student = next(item for item in found["students"] if item["kind"] == "ensemble")
    assert student["share_of_teacher"]["total"] == pytest.approx(
        student["num_params"]["total"] / (3 * found["ensembles"][_best(found)]["num_params"]["total"])
    )
    assert claims["The joint limit is worth at least 4 times the text"]["found"] is None, "two sizes are no law"
    assert found["laws"]["joint"]["total"]["problems"] == ["2 sizes for 3 parameters"]


def _best(found):
    members = next(item["teacher"] for item in found["students"] if item["kind"] == "ensemble")
    return next(place for place, item in enumerate(found["ensembles"]) if item["members"] == members)


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.ids, self.loaded, self.open = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links.extend(values[key] for key in ("href",) if key in values)
        self.loaded.extend(values[key] for key in ("src", "xlink:href") if key in values)
        self.ids.update(values[key] for key in ("id",) if key in values)


def test_the_page_needs_nothing_else_and_every_point_leads_to_its_run(study_folder, found):
    text = (study_folder / "report.html").read_text()
    assert found["test"]["num_documents"] < 20
    assert "So few documents make rough intervals" in text
    page = _Page()
    page.feed(text)
    assert page.loaded == []
    assert re.findall(r"<(script|link|img|iframe)\b|@import|url\(", text) == []
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert inner
    assert inner <= page.ids == {f"run-{name}" for name in found["runs"]}
    files = [link for link in page.links if not link.startswith("#")]
    assert files
    assert all((study_folder / link).is_file() for link in files)
    for claim in found["claims"]:
        assert claim["statement"].replace("'", "&#x27;") in text
        assert claim["paper"] in text
    charts = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(charts) == 5
    by_place = [set(re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="4.5" fill', chart)) for chart in charts]
    assert [len(places) for places in by_place] == [2, 3, 2, 2, 4], "sizes, members, sizes, text, models and ensembles"


def test_a_page_can_say_what_is_beyond_or_not_known(study_folder):
    study = read_study(study_folder)
    content = find(study, measure(study_folder, study))
    content["efficiency"]["ensemble"]["observed"] = {"value": None, "low": 1.5, "high": None}
    assert "more than 2x, the most that was tried" in page_html(content)


def test_chart_places_points_in_order_and_inside():
    points = [Point(x=x, y=y, low=y - 1, high=y + 1, link="#run-a", hover="<b>") for x, y in ((10, 3), (1000, 5))]
    svg = chart_svg([Series(name="a & b", points=points)], Axes(x_label="x", y_label="y"), title='"t"')
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4.5" fill', svg)]
    assert places[0][0] < places[1][0]
    assert places[0][1] > places[1][1], "a higher value is higher up"
    assert all(0 < x < 620 and 0 < y < 340 for x, y in places)
    assert "<b>" not in svg
    assert "a &amp; b" in svg


def test_labels_below_a_chart_stay_apart():
    points = [Point(x=x, y=1.0) for x in (100, 104, 200, 1000)]
    svg = chart_svg([Series(name="a", points=points)], Axes(x_label="x", y_label="y"), title="t")
    labels = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">[\d.]+k?</text>', svg)]
    assert len(labels) == 3
    assert min(after - before for before, after in itertools.pairwise(labels)) >= 40


def test_winners_at_the_end_of_a_ladder_and_the_student_nearest_to_an_eighth_are_named(study_folder, found):
    ends = {(item["recipe"], item["size"]) for item in found["open_ends"]}
    expected = {
        (name, item["size"]) for name in ("standard", "regularised") for item in found[name] if item["open_ends"]
    }
    assert {end for end in ends if end[0] != "more text"} == expected
    text = (study_folder / "report.html").read_text()
    assert ("Best at the end of a ladder" in text) == bool(ends)
    [claim] = [claim for claim in found["claims"] if "an eighth of the ensemble" in claim["statement"]]
    student = next(item for item in found["students"] if item["kind"] == "ensemble")
    assert f"(here {student['size']})" in claim["statement"]
    assert claim["found"]["value"] == pytest.approx(100 * student["kept"]["value"])


def test_token_losses_sum_to_the_loss(corpus):
    stream, num_bytes = corpus.tune_part(400)
    law = np.log(1 / 300)

    def laws(ids):
        import torch

        return [torch.full((*ids.shape, 300), law)]

    nats = held_out_token_nats(laws, stream, sequence_tokens=7)
    [loss] = held_out_losses(laws, stream, num_bytes=num_bytes, sequence_tokens=7)
    assert nats.shape == (1, len(stream.ids) - 1)
    assert nats.mean() == pytest.approx(loss.loss_nats) == pytest.approx(math.log(300), rel=1e-5)


def test_bad_input_is_refused(prepared, tmp_path, study_folder):
    with pytest.raises(CheckpointError, match=r"has no study.json"):
        read_study(tmp_path)
    (tmp_path / "study.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match="is damaged"):
        read_study(tmp_path)
    with pytest.raises(ConfigError, match=r"training tokens, the scale 'cpu' is of 32,768"):
        reproduce(tmp_path / "large", scales.SCALES["cpu"], data=prepared, num_workers=1)
    with pytest.raises(ConfigError, match="begin with 1"):
        StudyScale(**{name: getattr(TINY, name) for name in TINY.__slots__} | {"multiples": (2, 1)})
