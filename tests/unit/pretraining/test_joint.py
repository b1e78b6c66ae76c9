"""The joint limit: two limits one after the other, the same draws through both, and what is not identified said."""

import json

import numpy as np
import pytest

from forerun.cli.main import main
from forerun.core.errors import ConfigError
from forerun.pretraining.config import ShapeConfig
from forerun.pretraining.ensemble import evaluate_ensemble, write_ensemble
from forerun.pretraining.joint import joint_limit, largest_count_error, law_in_size
from forerun.pretraining.train import pretrain

SIZES = [25e3, 75e3, 150e3, 440e3]


def replicated(losses, spread, count=200):
    rng = np.random.Generator(np.random.Philox(0))
    rows = np.asarray(losses) + spread * rng.standard_normal((count + 1, 1))
    rows[0] = losses
    return rows


def test_a_law_without_noise_gives_its_limit_and_predicts_its_largest_size():
    losses = [3.0 + 500 * size**-0.7 for size in SIZES]
    found = law_in_size(SIZES, replicated(losses, 0.01))
    assert found.is_identified
    assert found.limit.value == pytest.approx(3.0, abs=1e-4)
    assert found.limit.low == pytest.approx(3 - 0.0196, abs=5e-3), "what moves all sizes moves the limit"
    assert found.limit.high == pytest.approx(3 + 0.0196, abs=5e-3)
    assert found.largest_error.value == pytest.approx(0, abs=5e-3)
    assert len(found.without_one) == 4
    three = law_in_size(SIZES[:3], replicated(losses[:3], 0.0))
    assert (three.is_identified, three.problems) == (False, ("3 points for 3 parameters",))
    assert (three.without_one, three.largest_error) == ((), None)


def test_a_limit_that_the_sizes_do_not_say_is_not_identified():
    assert law_in_size(SIZES[:2], np.ones((9, 2))).problems == ("2 sizes for 3 parameters",)
    assert "the loss does not fall" in law_in_size(SIZES, replicated([3.0, 3.1, 3.2, 3.3], 0.0)).problems
    rows = replicated([3.0 + 30 * size**-0.2 for size in SIZES], 0.0)
    rows[1:, -1] -= np.linspace(0, 0.6, len(rows) - 1)  # some replicates have no limit above 0
    assert "the interval of the limit reaches 0" in law_in_size(SIZES, rows).problems


def test_a_size_that_lies_off_the_law_leaves_it_not_identified():
    falling = [3.0 + 500 * size**-0.7 for size in SIZES]
    risen = [*falling[:3], falling[2] + 0.2]
    problems = law_in_size(SIZES, replicated(risen, 0.01)).problems
    assert any("parameters lie" in problem for problem in problems)
    noisy = np.asarray(risen) + 0.5 * np.random.Generator(np.random.Philox(1)).standard_normal((201, 4))
    noisy[0] = risen
    assert not any("parameters lie" in problem for problem in law_in_size(SIZES, noisy).problems), "it may be noise"


def test_members_predict_the_largest_ensemble():
    curve = np.stack([[3 + 0.2 / count for count in range(1, 5)]] * 3)
    assert largest_count_error(curve).value == pytest.approx(0, abs=1e-12)
    assert largest_count_error(curve - [[0, 0, 0, 0.1]]).value == pytest.approx(0.1)
    assert largest_count_error(curve[:, :2]) is None


@pytest.fixture(scope="module")
def ensembles(corpus, tiny, tmp_path_factory):
    store = tmp_path_factory.mktemp("joint")
    shapes = [
        ShapeConfig(hidden_size=width, intermediate_size=2 * width, num_layers=1, num_heads=1) for width in (8, 12, 16)
    ]
    found = []
    for shape in reversed(shapes):
        members = [
            pretrain(corpus, store, tiny(shape=shape, num_epochs=1, seed=seed, tune_tokens=2000)).folder
            for seed in range(2)
        ]
        folder = store / f"ensemble-{shape.hidden_size}"
        result = evaluate_ensemble(members, corpus)
        write_ensemble(folder, result, average="probability", data_sha256=corpus.manifest.data_sha256)
        found.append((folder, members, result))
    return found


def test_ensembles_are_taken_to_both_limits(ensembles, corpus, prepared, tmp_path, capsys):
    found = joint_limit([members for _, members, _ in ensembles], corpus, num_replicates=50)
    for item, (_, members, result) in zip(found.ensembles, reversed(ensembles), strict=True):
        assert item.members == tuple(str(folder) for folder in members)
        alone = np.mean([loss.loss_nats for loss in result.member_losses])
        both = result.by_count["probability"][1].loss_nats
        assert item.curve[0].value == pytest.approx(alone, abs=1e-5)
        assert item.curve[1].value == pytest.approx(both, abs=1e-5)
        assert item.limit.value == pytest.approx(2 * both - alone, abs=1e-5), "C of C + A / K"
    for law in found.laws.values():
        assert law.fit.at(1e9) == pytest.approx(law.limit.value, abs=0.3)
        assert law.problems[0] == "3 points for 3 parameters"
    report = tmp_path / "joint.json"
    folders = [str(folder) for folder, _, _ in ensembles]
    command = ["pretrain", "joint", *folders, "--data", str(prepared), "--replicates", "50", "--json", str(report)]
    assert main(command) == 0
    written = json.loads(report.read_text())
    assert written["laws"]["total"]["asymptote"]["value"] == pytest.approx(found.laws["total"].limit.value)
    assert "not identified: 3 points for 3 parameters" in capsys.readouterr().out


def test_what_gives_no_law_is_refused(ensembles, corpus, prepared, tiny, tmp_path, capsys):
    members = [folders for _, folders, _ in ensembles]
    with pytest.raises(ConfigError, match="is an ensemble of one"):
        joint_limit([members[0], members[1][:1]], corpus)
    with pytest.raises(ConfigError, match="members of several sizes"):
        joint_limit([[members[0][0], members[1][0]]], corpus)
    with pytest.raises(ConfigError, match="of ensembles of the same size"):
        joint_limit([members[0], members[0]], corpus)
    other = [
        pretrain(corpus, tmp_path, tiny(num_epochs=1, seed=seed, unique_tokens=2000, tune_tokens=2000)).folder
        for seed in range(2)
    ]
    with pytest.raises(ConfigError, match="had 2,000 and 4,000 tokens of text"):
        joint_limit([members[1], other], corpus)
    assert main(["pretrain", "joint", str(other[0]), "--data", str(prepared)]) == 2
    assert "a limit in the number of members needs at least 2" in capsys.readouterr().err
