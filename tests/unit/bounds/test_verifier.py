"""The stand-alone verifier: accepts what holds, rejects every kind of tampering, needs only numpy."""

import ast
import hashlib
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from forerun.bounds import verifier
from forerun.bounds.certificate import run_verifier
from forerun.bounds.pac_bayes import binomial_tail_bound
from forerun.data.labelled import LabelledData

SOURCE = Path(verifier.__file__)


def reason(path, task, data=None, grid_sha256=None):
    """Return why a certificate is rejected."""
    train = task.train if data is None else data
    with pytest.raises(ValueError) as caught:
        verifier.verify(path, train.inputs, train.labels, grid_sha256 or task.grid.sha256)
    return str(caught.value)


def test_accepts_what_certify_wrote_and_finds_its_numbers(made):
    path, _, task, result = made
    found = verifier.verify(path, task.train.inputs, task.train.labels, task.grid.sha256)
    assert found["num_errors"] == result.num_errors
    assert found["risk_bound"] == pytest.approx(result.risk_bound, abs=1e-8)
    assert found["code_length_bits"] == pytest.approx(
        sum(line.bits for line in result.ledger if line.name != "confidence"), abs=1e-9
    )


def set_claim(name, value):
    return lambda manifest: manifest["claims"].__setitem__(name, value)


def set_top(name, value):
    return lambda manifest: manifest.__setitem__(name, value)


MANIFEST_CHANGES = {
    "fewer errors": (set_claim("num_errors", -1), "num_errors is"),
    "fewer bits": (set_claim("code_length_bits", 1.0), "code_length_bits is"),
    "smaller bound": (set_claim("risk_bound", 0.001), "risk_bound is"),
    "bound that is no number": (set_claim("risk_bound", math.nan), "risk_bound is"),
    "more examples": (set_claim("num_samples", 10**6), "num_samples is"),
    "other verdict": (set_claim("is_vacuous", True), "is_vacuous is"),
    "cheaper ledger line": (lambda m: m["claims"]["ledger_bits"].__setitem__("symbols", 0.0), "ledger's symbols"),
    "ledger line left out": (lambda m: m["claims"]["ledger_bits"].pop("codebook"), "ledger has other lines"),
    "larger delta": (set_top("delta", 0.5), "risk_bound is"),
    "delta of one": (set_top("delta", 1.0), "strictly between 0 and 1"),
    "grid of one dimension": (lambda m: m["grid"].__setitem__("subspace_dims", [40]), "grid is not the one"),
    "grid with other scale": (lambda m: m["grid"].__setitem__("input_scale", 0.5), "grid is not the one"),
    "other data": (set_top("data_sha256", "0" * 64), "not the data"),
    "other version": (set_top("version", 1), "unknown format"),
    "claims left out": (lambda m: m.pop("claims"), "malformed"),
    "claims of the wrong kind": (set_top("claims", "fine"), "malformed"),
    "text for a number": (set_claim("num_errors", "0"), "malformed"),
}


@pytest.mark.parametrize("kind", MANIFEST_CHANGES)
def test_changed_manifest_is_rejected(made, tampered, kind):
    edit, expected = MANIFEST_CHANGES[kind]
    assert expected in reason(tampered(edit), made[2])


MESSAGE_CHANGES = {
    "bit flipped": lambda code: code[:4] + bytes([code[4] ^ 16]) + code[5:],
    "cut": lambda code: code[: len(code) // 2],
    "bytes appended": lambda code: code + b"\x01\x02\x03\x04",
    "all ones": lambda code: b"\xff" * len(code),
    "empty": lambda code: b"",
}


@pytest.mark.parametrize("kind", MESSAGE_CHANGES)
def test_changed_message_is_rejected_with_and_without_its_digest(made, tampered, kind):
    change = MESSAGE_CHANGES[kind]
    assert "message has been changed" in reason(tampered(message=change), made[2])
    with zipfile.ZipFile(made[0]) as archive:
        digest = hashlib.sha256(change(archive.read("message.bin"))).hexdigest()
    assert reason(tampered(set_top("message_sha256", digest), change), made[2])


def test_model_of_zero_bits_is_refused(made, tampered):
    digest = hashlib.sha256(b"").hexdigest()
    path = tampered(set_top("message_sha256", digest), lambda code: b"")
    assert "zero bits" in reason(path, made[2])
    manifest, message = verifier.read_certificate(made[0])
    manifest["grid"]["subspace_dims"] = [0]
    with pytest.raises(ValueError, match="fewer than 8 dimensions"):
        verifier.measure(manifest, message, made[2].train.inputs, made[2].train.labels)


@pytest.mark.parametrize("name", ["buffers.npz", "message.bin", "../escape"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_anything_outside_the_code_is_refused(made, tampered, name):
    assert "nothing else may be in it" in reason(tampered(further=(name,)), made[2])


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_file_that_is_no_archive_is_rejected(made, tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    assert "corrupt" in reason(tmp_path / "x.zip", made[2])


def test_grid_must_be_named_for_tasks_that_have_no_standard_one(made):
    train = made[2].train
    with pytest.raises(ValueError, match="--grid-sha256"):
        verifier.verify(made[0], train.inputs, train.labels)


def test_data_marked_iid_that_cannot_be(made, tampered):
    """The digest is made to fit each time: the check is of the data themselves."""
    train = made[2].train
    balanced = np.concatenate([np.flatnonzero(train.labels == c)[:100] for c in range(3)])
    broken = {
        "repeated": LabelledData(inputs=np.repeat(train.inputs, 2, axis=0), labels=np.repeat(train.labels, 2)),
        "stratified": train.rows(balanced),
        "no example": train.rows(np.flatnonzero(train.labels != 1)),
        "NaN": LabelledData(inputs=np.where(train.inputs > 2, np.nan, train.inputs), labels=train.labels),
        "columns": LabelledData(inputs=train.inputs[:, :-1], labels=train.labels),
        "labels out of range": LabelledData(inputs=train.inputs, labels=train.labels + 1),
    }
    for expected, data in broken.items():
        digest = verifier.data_sha256(data.inputs, data.labels)
        assert expected in reason(tampered(set_top("data_sha256", digest)), made[2], data)


def test_relabelled_data_change_the_count(made, tampered):
    train = made[2].train
    data = LabelledData(inputs=train.inputs, labels=(train.labels + 1) % 3)
    digest = verifier.data_sha256(data.inputs, data.labels)
    assert "num_errors is" in reason(tampered(set_top("data_sha256", digest)), made[2], data)


def test_predictions_that_depend_on_the_batch_are_refused(made, monkeypatch):
    def coupled(layers, inputs, labels, input_shape):
        return inputs[:, 0] > inputs[:, 0].mean()

    monkeypatch.setattr(verifier, "find_errors", coupled)
    assert "other examples of the batch" in reason(made[0], made[2])


def test_ties_count_as_errors():
    def errors(weight):
        layers = [(np.array(weight)[:, None], np.zeros(3), (1, 1), 1, (1, 1))]
        return verifier.find_errors(layers, np.array([[2.0], [2.0]]), np.array([0, 1]), (1, 1, 1)).tolist()

    assert errors([1.0, 1.0, 0.0]) == [True, True]
    assert errors([1.0, 0.5, 0.0]) == [False, True]


def test_words_are_those_of_splitmix64():
    assert int(verifier.random_words(0, 0, 1)[0]) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("case", [(0, 20, 3.0), (167, 1500, 278.0), (9960, 60_000, 1338.0), (7, 7, 1.0)])
def test_its_bound_is_that_of_the_package(case):
    assert verifier.binomial_bound(*case) == pytest.approx(binomial_tail_bound(*case), abs=1e-8)


def test_fresh_process_says_yes_and_no(made, tampered):
    path, _, task, _ = made
    option = [f"--grid-sha256={task.grid.sha256}"]
    assert run_verifier(path, task.train, option)["accepted"] is True
    answer = run_verifier(tampered(set_claim("risk_bound", 0.0)), task.train, option)
    assert answer["accepted"] is False
    assert "risk_bound" in answer["reason"]


def test_it_is_short_and_needs_only_numpy():
    assert len(SOURCE.read_text().splitlines()) < 400
    imported = set()
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy"}
