"""Certificates of language models: the verifier's model, its bounds, and what it rejects."""

import ast
import hashlib
import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.bounds.language import verifier
from forerun.bounds.language.certify import affordable_bits, certify_language
from forerun.bounds.language.grid import BYTES_GRID, LanguageGrid
from forerun.bounds.language.message import NUM_SETS, LanguageMessage, encode_language_message
from forerun.bounds.language.task import Documents, LanguageTask, bytes_task, training_documents
from forerun.cli.main import main
from forerun.core.errors import CertificateError, ConfigError

from .conftest import rewrite

SOURCE = Path(verifier.__file__)
NUM_BYTES, FIT_BYTES = 24_000, 6_000


def write_corpus(folder):
    """Write 24 documents of statements about a few names, so that a document repeats itself."""
    source = np.random.default_rng(3)
    for number in range(24):
        names = ["".join(map(chr, source.integers(97, 123, source.integers(3, 9)))) for _ in range(8)]
        lines = []
        for _ in range(60):
            first, second, third = source.choice(names, 3)
            lines.append(f"{' ' * 4 * source.integers(0, 3)}{first} = {second}({third}, {source.integers(0, 50)})")
        (folder / f"{number:02}.py").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """Return the certificate, the corpus, the task and the result."""
    folder = tmp_path_factory.mktemp("language")
    corpus = folder / "corpus"
    corpus.mkdir()
    write_corpus(corpus)
    task = bytes_task(str(corpus), num_bytes=NUM_BYTES)
    result = certify_language(task, folder / "made.zip", fit_bytes=FIT_BYTES)
    return folder / "made.zip", corpus, task, result


@pytest.fixture(scope="session")
def model(spoken):
    manifest, message = verifier.read_certificate(spoken[0])
    return verifier.decode(message, manifest["grid"])[0]


def reason(path, task, documents=None):
    """Return why a certificate is rejected."""
    documents = task.train if documents is None else documents
    with pytest.raises(ValueError) as caught:
        verifier.verify(path, documents.text, documents.ends)
    return str(caught.value)


# --- the model


def random_text(num_bytes, seed=0):
    source = np.random.default_rng(seed)
    return source.choice(np.frombuffer(b"ab  c_D1\n(.", np.uint8), num_bytes)


def plain_state(seen):
    """Return the state of a list of bits, as the verifier's docstring tells it."""
    if not seen:
        return 0
    last = seen[-1]
    same, other = seen.count(last), len(seen) - seen.count(last)
    if other == 0:
        state = sum(same >= count for count in verifier.COUNTS)
    else:
        run = 1
        while seen[-1 - run] == last:
            run += 1
        shift = max(0, len(seen).bit_length() - 8)
        same, other = max(same >> shift, 1), max(other >> shift, 1)
        ratio = math.log((same + 0.4) / (other + 0.4))
        state = 10 + 12 * ((run > 1) + (run > 3)) + sum(ratio > edge for edge in verifier.RATIOS)
    return state if last else -state


def test_states_are_those_of_bits_counted_one_by_one():
    text = random_text(700)
    hashes = verifier.context_hashes(text)
    states, _, nodes, bits, _ = verifier.document_features(text, verifier.state_table())
    for context, found in zip(hashes, states, strict=True):
        seen = defaultdict(list)
        for place, (node, bit) in enumerate(zip(nodes.tolist(), bits.tolist(), strict=True)):
            earlier = seen[int(context[place // 8]), node]
            assert found[place] == plain_state(earlier), (place, earlier)
            earlier.append(bit)


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        ("o2", b"xxab", b"yyab"),
        ("o3", b"xxabc", b"yyabc"),
        ("word", b"ab name", b"c(name"),
        ("words", b"get, name", b"get name"),
        ("line", b"a\n   if bcd", b"xyz\n   if bcd"),
        ("above", b"xyz\nab", b"qyz\ncb"),
        ("gap", b"zabc", b"yabd"),
    ],
)
def test_contexts_tell_what_they_should_from_what_they_should_not(name, left, right):
    """The context after the text is the same on both sides, and another one after a further change."""
    place = verifier.CONTEXTS.index(name)

    def after(text):
        return verifier.context_hashes(np.frombuffer(text + b"?", np.uint8))[place][-1]

    assert after(left) == after(right)
    changed = {"above": b"xyQ\nab", "gap": b"zQbc", "line": b"a\n    if bcd"}.get(name, left[:-1] + b"Q")
    assert after(changed) != after(left)


def test_what_comes_later_changes_nothing(model):
    """A model that looked ahead would make the martingale's bound false."""
    text = random_text(600, seed=1)
    whole = verifier.score_documents(model, [text])
    for cut in (65, 130, 599):
        part = verifier.score_documents(model, [text[:cut]])
        np.testing.assert_array_equal(part[0], whole[0][:cut])
        np.testing.assert_array_equal(part[1], whole[1][:cut])


def test_scores_of_all_256_next_bytes_are_a_law(model):
    for start in (b"", b"def name(self):\n    "):
        documents = [np.frombuffer(start + bytes([byte]), np.uint8) for byte in range(256)]
        scores = verifier.score_documents(model, documents)[0].reshape(256, -1)
        assert (2.0 ** -scores[:, -1]).sum() == pytest.approx(1, abs=1e-9)


def test_documents_do_not_depend_on_each_other(spoken, model):
    documents = spoken[2].train.split()[:4]
    together = verifier.score_documents(model, documents)[2]
    alone = [verifier.score_documents(model, [document])[2][0] for document in documents]
    assert together.tolist() == alone


def test_scores_stay_below_the_largest(model):
    noise = np.random.default_rng(2).integers(0, 256, 3000).astype(np.uint8)
    scores, _, mixed = verifier.score_documents(model, [noise])
    assert 0 < scores.min() <= scores.max() <= 8 - math.log2(model["smoothing"])
    assert mixed[0] <= 8 + 1 / len(noise)


# --- the message


@st.composite
def language_messages(draw):
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    density, size = draw(st.sampled_from([0.0, 0.02, 0.5])), draw(st.sampled_from([1, 9, 255]))

    def steps(*shape):
        return np.where(source.random(shape) < density, source.integers(-size, size + 1, shape), 0)

    return LanguageMessage(
        smoothing=draw(st.integers(0, 7)),
        weight_step=draw(st.integers(0, 3)),
        vote_step=draw(st.integers(0, 3)),
        bias_step=draw(st.integers(0, 3)),
        weights=steps(NUM_SETS, len(verifier.CONTEXTS)),
        votes=steps(len(verifier.CONTEXTS), verifier.NUM_STATES - 1),
        biases=steps(255),
    )


@settings(max_examples=15, deadline=None)
@given(language_messages())
def test_a_message_returns_and_is_as_long_as_its_information(message):
    code = encode_language_message(message, BYTES_GRID)
    model, ledger = verifier.decode(code, BYTES_GRID.as_json())
    assert abs(8 * len(code) - sum(ledger.values())) < 16
    steps = BYTES_GRID.weight_steps[message.weight_step], BYTES_GRID.vote_steps[message.vote_step]
    assert model["smoothing"] == BYTES_GRID.smoothings[message.smoothing]
    np.testing.assert_array_equal(model["votes"][:, 1:] - verifier.first_votes()[1:], message.votes * steps[1])
    weights = message.weights * steps[0]
    at, digits = 1234, []
    for size in reversed(verifier.SELECTORS):
        digits.insert(0, at % size)
        at //= size
    starts = np.cumsum([1, *verifier.SELECTORS[:-1]])
    rows = [0, *(start + digit for start, digit in zip(starts, digits, strict=True))]
    np.testing.assert_array_equal(model["weights"][:, 1234], verifier.FIRST_WEIGHT + weights[rows].sum(axis=0))


def test_message_of_the_wrong_shape_is_refused():
    zeros = {"weights": (NUM_SETS, 13), "votes": (13, 45), "biases": (254,)}
    with pytest.raises(ConfigError, match="biases"):
        LanguageMessage(
            smoothing=0, weight_step=0, vote_step=0, bias_step=0,
            **{name: np.zeros(shape, np.int64) for name, shape in zeros.items()},
        )  # fmt: skip


# --- the bounds


def test_token_bound_is_the_formula_at_its_best_rate():
    source = np.random.default_rng(4)
    scores, centres = source.random(500) * 6, source.random(500) * 3
    values = [
        centres.mean() - np.log(1 + rate * (centres - scores)).mean() / rate + (2.5 + math.log(3)) / (rate * 500)
        for rate in (0.01, 0.05)
    ]
    found = verifier.token_bound(scores, centres, (0.01, 0.05, 0.9), 6.0, 2.5)
    assert found == pytest.approx(min(values) + verifier.SLACK_BITS, abs=1e-12)


def test_centres_are_means_of_earlier_scores_of_the_bucket():
    scores, buckets = np.array([1.0, 5.0, 3.0, 7.0, 2.0]), np.array([4, 9, 4, 4, 9])
    assert verifier.earlier_means(scores, buckets).tolist() == [2.0, 2.0, 1.5, 2.0, 3.5]


@pytest.mark.statistical
@pytest.mark.parametrize("level", ["token", "document"])
def test_bounds_fail_as_seldom_as_they_say_and_no_bound_fails_often(level):
    """1,000 texts with failure probability 0.1: more than 145 violations have a probability of 3e-6 if the bound holds.

    The mean without any margin is the negative control.
    """
    source, nats, num, trials = np.random.default_rng(6), math.log(10), 300, 1000
    violations = naive = 0
    for _ in range(trials):
        if level == "token":  # Each score's mean depends on the score before: a dependent process.
            scores, means, last = np.empty(num), np.empty(num), 0
            draws = source.random(num)
            for place in range(num):
                likely = 0.85 if last else 0.3
                last = int(draws[place] < likely)
                means[place], scores[place] = 0.2 * likely + 4.0 * (1 - likely), 0.2 if last else 4.0
            centres = np.concatenate([[2.0], np.where(scores[:-1] < 1, 0.77, 2.9)])
            bound = verifier.token_bound(scores, centres, BYTES_GRID.rates[:8], 5.0, nats - math.log(8))
            truth = means.mean()
        else:
            scores, truth = np.where(source.random(num) < 0.8, 1.5, 7.5), 2.7
            bound = verifier.document_bound(scores, BYTES_GRID.stakes, nats - math.log(8))
        violations += bound < truth
        naive += scores.mean() < truth
    assert violations <= 145
    assert naive > 145


# --- the certificate


def test_accepts_what_certify_wrote_and_finds_its_numbers(spoken):
    path, _, task, result = spoken
    found = verifier.verify(path, task.train.text, task.train.ends)
    assert found["token_bound"] == pytest.approx(result.token.bound, abs=1e-9)
    assert result.token.score < result.token.bound < 8
    paid = sum(line.bits for line in result.ledger if line.name in found["ledger_bits"])
    assert paid == pytest.approx(result.code_length_bits) == pytest.approx(found["code_length_bits"])


def set_claim(name, value):
    return lambda manifest: manifest["claims"].__setitem__(name, value)


def set_top(name, value):
    return lambda manifest: manifest.__setitem__(name, value)


CHANGES = {
    "smaller token bound": (set_claim("token_bound", 0.5), "token_bound is"),
    "smaller document bound": (set_claim("document_bound", 1.0), "document_bound is"),
    "bound that is no number": (set_claim("token_bound", math.nan), "token_bound is"),
    "smaller score": (set_claim("token_score", 0.1), "token_score is"),
    "fewer bits": (set_claim("code_length_bits", 1.0), "code_length_bits is"),
    "more bytes": (set_claim("num_bytes", 10**9), "num_bytes is"),
    "other verdict": (set_claim("document_is_vacuous", 7), "document_is_vacuous is"),
    "cheaper ledger line": (lambda m: m["claims"]["ledger_bits"].__setitem__("weights", 0.0), "weights is"),
    "ledger line left out": (lambda m: m["claims"]["ledger_bits"].pop("votes"), "ledger has other lines"),
    "larger delta": (set_top("delta", 0.5), "_bound is"),
    "delta of one": (set_top("delta", 1.0), "strictly between 0 and 1"),
    "smaller smoothings": (lambda m: m["grid"].__setitem__("smoothings", [1e-9] * 8), "grid is not the one"),
    "further rates": (lambda m: m["grid"]["rates"].append(0.2), "grid is not the one"),
    "other data": (set_top("data_sha256", "0" * 64), "not the data"),
    "task without a standard grid": (set_top("task", "mine"), "--grid-sha256"),
    "other version": (set_top("version", 2), "unknown format"),
    "certificate of a classifier": (set_top("format", "forerun-certificate"), "unknown format"),
    "claims left out": (lambda m: m.pop("claims"), "malformed"),
    "claims of the wrong kind": (set_top("claims", "fine"), "malformed"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_manifest_is_rejected(spoken, tmp_path, kind):
    edit, expected = CHANGES[kind]
    assert expected in reason(rewrite(spoken[0], tmp_path / "x.zip", edit), spoken[2])


@pytest.mark.parametrize(
    "change",
    [
        lambda code: code[:4] + bytes([code[4] ^ 16]) + code[5:],
        lambda code: code[: len(code) // 2],
        lambda code: code + b"\x01\x02\x03\x04",
        lambda code: b"",
    ],
    ids=["bit flipped", "cut", "bytes appended", "empty"],
)
def test_changed_message_is_rejected_with_and_without_its_digest(spoken, tmp_path, change):
    path, _, task, _ = spoken
    assert "message has been changed" in reason(rewrite(path, tmp_path / "x.zip", message=change), task)
    digest = hashlib.sha256(change(verifier.read_certificate(path)[1])).hexdigest()
    assert reason(rewrite(path, tmp_path / "x.zip", set_top("message_sha256", digest), change), task)


def test_anything_outside_the_code_is_refused(spoken, tmp_path):
    path = rewrite(spoken[0], tmp_path / "x.zip", further=("primer.txt",))
    assert "nothing else may be in it" in reason(path, spoken[2])
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 cut short")
    assert "corrupt" in reason(tmp_path / "x.zip", spoken[2])


def test_text_that_is_not_what_it_should_be(spoken):
    """Checked on the data themselves, whatever digest a manifest has."""
    manifest, message = verifier.read_certificate(spoken[0])
    train = spoken[2].train
    one = train.split()[0]
    broken = {
        "repeated": (np.concatenate([one, one]), np.array([len(one), 2 * len(one)])),
        "under 64 bytes": (one, np.array([10, len(one)])),
        "end where the text ends": (train.text[:-1], train.ends),
        "must be bytes": (train.text.astype(np.int64), train.ends),
    }
    for expected, (text, ends) in broken.items():
        with pytest.raises(ValueError, match=expected):
            verifier.measure(manifest, message, text, ends)
    swapped = type(train)(text=np.concatenate([*train.split()[1:], one]), ends=train.ends)
    assert "not the data" in reason(spoken[0], spoken[2], swapped)


def test_verifier_is_short_and_needs_only_numpy():
    text = SOURCE.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "numpy"}


def test_standard_grid_is_the_one_the_verifier_knows():
    assert {"bytes": BYTES_GRID.sha256} == verifier.STANDARD_GRID_SHA256


# --- the task and the commands


def test_text_is_taken_by_name_and_documents_are_whole(spoken):
    _, corpus, task, result = spoken
    assert len(task.train.text) >= NUM_BYTES > len(task.train.text) - len(task.train.split()[-1])
    assert len(task.train) + len(task.holdout) == 24
    found = {part.tobytes() for part in [*task.train.split(), *task.holdout.split()]}
    assert found == {file.read_bytes() for file in corpus.iterdir()}
    again = training_documents(str(corpus), {"claims": {"num_documents": result.num_documents}})
    assert verifier.data_sha256(again.text, again.ends) == result.data_sha256
    with pytest.raises(CertificateError, match="about 99 documents"):
        training_documents(str(corpus), {"claims": {"num_documents": 99}})


@pytest.mark.parametrize(
    "options", [{"stakes": (0.5, 1.0)}, {"rates": ()}, {"vote_steps": (4, 4)}, {"smoothings": (-0.5,)}]
)
def test_unusable_grid_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        LanguageGrid(**options)


def test_commands_certify_and_verify(spoken, tmp_path, capsys):
    _, corpus, _, result = spoken
    out, numbers = tmp_path / "c.zip", tmp_path / "c.json"
    command = ["certify", "--task", "bytes", "--data", str(corpus), "--num-bytes", str(NUM_BYTES)]
    files = ["--out", str(out), "--json", str(numbers)]
    assert main([*command, "--fit-bytes", str(FIT_BYTES), "--level", "document", *files]) == 0
    written, said = json.loads(numbers.read_text()), capsys.readouterr().out
    assert written["code_length_bits"] < result.code_length_bits
    assert "document level: at most" in said
    assert "token level: at most" in said
    assert "confidence" in said
    assert main(["verify", str(out), "--data", str(corpus)]) == 0
    assert capsys.readouterr().out.startswith("yes: at most")
    rewrite(out, out.with_name("bad.zip"), set_claim("token_bound", 0.1))
    assert main(["verify", str(out.with_name("bad.zip")), "--data", str(corpus)]) == 1
    assert "no: token_bound is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--num-bytes", "0"], "num_bytes=0"),
        (["--delta", "1.5"], "delta=1.5"),
        (["--fit-bytes", "0"], "num_bytes=0"),
        (["--num-train", "5"], "--num-train"),
    ],
)
def test_bad_input_is_one_line(spoken, tmp_path, capsys, options, expected):
    command = ["certify", "--task", "bytes", "--data", str(spoken[1]), "--out", str(tmp_path / "x.zip")]
    assert main([*command, "--num-bytes", "20000", *options]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], "--data"), (["--data", "here", "--task", "bytes"], "--task"), (["--data", "."], "manifest")],
)
def test_models_without_their_corpus_are_one_line(tmp_path, capsys, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert main(["certify", "--model", "run", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error or "run" in error


def test_too_little_text_is_said_before_fitting(tmp_path):
    """Each byte can bear the largest valid rate times 8 nats; 64 of them bear a model of 15 bits at this delta."""
    only = Documents(text=np.arange(64, dtype=np.uint8), ends=np.array([64]))
    task = LanguageTask(name="bytes", grid=BYTES_GRID, train=only, holdout=None)
    largest_rate = max(rate for rate in BYTES_GRID.rates if rate * 12 < 1)
    nats = 8 * largest_rate * 64 - math.log(2e10) - math.log(32)
    assert affordable_bits(task, delta=1e-10) == pytest.approx(nats / math.log(2))
    with pytest.raises(ConfigError, match="too few for a bound below 8"):
        certify_language(task, tmp_path / "x.zip", delta=1e-10, report=lambda line: None)
