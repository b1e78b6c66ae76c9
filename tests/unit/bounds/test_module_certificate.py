"""Certificates of modules: decoded and scored elsewhere, tampered copies rejected, bad modules one clear error."""

import hashlib
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from simulated import module_factories
from torch.utils.data import Dataset, TensorDataset

from forerun.bounds import verifier
from forerun.bounds.module.certify import ModuleCandidate, certify_module
from forerun.bounds.module.evaluation import build_subspace, independent_scores
from forerun.bounds.module.factory import build_module, factory_name, load_factory, source_digests, start_sha256
from forerun.bounds.module.grid import open_grid, standard_choices
from forerun.bounds.module.task import ModuleTask, module_task
from forerun.bounds.module.verifier import main as verifier_main
from forerun.bounds.module.verifier import module_kind, standard_grid_sha256
from forerun.bounds.search import SearchConfig
from forerun.cli.main import main
from forerun.core.errors import ConfigError
from forerun.data.labelled import LabelledData, read_dataset

from .conftest import clouds, rewrite

NETS = "simulated.module_factories"
PLAIN = f"{NETS}:plain"
SEARCH = SearchConfig(num_steps=60, nat_weights=(2.0,), num_sweeps=1)
CANDIDATES = (ModuleCandidate(dim=16, levels=3, search=SEARCH),)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a certificate, its data file, task and result."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("module")
    clouds(480).save(folder / "data.npz")
    task = module_task(PLAIN, folder / "data.npz")
    return (
        folder / "made.zip",
        folder / "data.npz",
        task,
        certify_module(task, folder / "made.zip", candidates=CANDIDATES),
    )


@pytest.fixture
def in_this_process(monkeypatch):
    """Have the verifier's program run here: what a process of its own adds is seen by the other tests."""

    def ask_here(program, path, train, options):
        train.save(path.with_suffix(".npz"))
        with redirect_stdout(StringIO()) as printed:
            verifier_main([str(path), str(path.with_suffix(".npz")), *options])
        return json.loads(printed.getvalue())

    monkeypatch.setattr("forerun.bounds.selection.ask_verifier", ask_here)


def judge(
    path: Path, task: ModuleTask, factory: str = PLAIN, base: Path | None = None, train: LabelledData | None = None
):
    """Return what the verifier finds, its part in this process."""
    data = task.train if train is None else train
    return verifier.verify(path, data.inputs, data.labels, standard_grid_sha256(path), module_kind(factory, base))


def reason(*args, **options) -> str:
    with pytest.raises(ValueError) as caught:
        judge(*args, **options)
    return str(caught.value)


def test_bound_is_not_vacuous_and_every_choice_is_paid(made):
    _, _, task, result = made
    assert result.empirical_risk <= result.risk_bound < result.chance
    bits = {line.name: line.bits for line in result.ledger}
    assert bits["projection"] == 2.0
    assert bits["dimension"] == pytest.approx(np.log2(len(task.grid.subspace_dims)))
    assert (bits["levels"], bits["seed"], bits["codebook"]) == (2.0, 2.0, 7.0)
    assert {"factory", "start", "buffers"} <= bits.keys()
    assert sum(bits.values()) == pytest.approx(result.code_length_bits - np.log2(result.delta))
    assert result.holdout is not None
    assert result.holdout["num_samples"] == 80
    assert result.holdout["empirical_risk"] < result.holdout["risk_bound"]


def test_verifier_scores_the_decoded_parameters(made):
    """The numbers are those of a plain module that is given the decoded parameters, in another way than ours."""
    path, _, task, result = made
    found = judge(path, task)
    assert found["num_errors"] == result.num_errors
    module = build_module(module_factories.plain, 0)
    network = build_subspace(module, projection="dense", dim=16, seed=0).double()
    values = network.values(torch.tensor(found["coefficients"], dtype=torch.float64))
    other = module_factories.plain().double()
    torch.nn.utils.vector_to_parameters(values, other.parameters())
    with torch.no_grad():
        predicted = other(torch.from_numpy(task.train.inputs)).argmax(dim=1).numpy()
    assert int((predicted != task.train.labels).sum()) == result.num_errors


def flip(code: bytes) -> bytes:
    return code[:3] + bytes([code[3] ^ 16]) + code[4:]


def set_claim(name, value):
    return lambda manifest: manifest["claims"].__setitem__(name, value)


def set_grid(name, value):
    return lambda manifest: manifest["grid"].__setitem__(name, value)


TAMPERED = {
    "smaller bound": ({"edit": set_claim("risk_bound", 0.001)}, "risk_bound is"),
    "fewer errors": ({"edit": set_claim("num_errors", -1)}, "num_errors is"),
    "fewer bits": ({"edit": set_claim("code_length_bits", 1.0)}, "code_length_bits is"),
    "cheaper line": ({"edit": lambda m: m["claims"]["ledger_bits"].__setitem__("projection", 0.0)}, "projection is"),
    "larger delta": ({"edit": lambda m: m.__setitem__("delta", 0.5)}, "risk_bound is"),
    "seed that costs nothing": ({"edit": set_grid("seeds", [0])}, "grid is not the one"),
    "other source": ({"edit": set_grid("sources_sha256", {NETS: "0" * 64})}, "source of"),
    "other start": ({"edit": set_grid("starts_sha256", ["0" * 64] * 4)}, "start for seed 0"),
    "other factory": ({"edit": set_grid("factory", f"{NETS}:with_dropout")}, "is of"),
    "base that was not named": ({"edit": set_grid("base_is_independent", True)}, "needs its base"),
    "number of values": ({"edit": set_grid("num_values", 76)}, "another number of values"),
    "other data": ({"edit": lambda m: m.__setitem__("data_sha256", "0")}, "not the data"),
    "changed message": ({"message": flip}, "message has been changed"),
    "no message": ({"message": lambda code: b""}, "message has been changed"),
    "file of buffers": ({"further": ("buffers.npz",)}, "nothing else may be in it"),
    "format of classifiers": ({"edit": lambda m: m.__setitem__("format", "forerun-certificate")}, "unknown format"),
    "no grid": ({"edit": lambda m: m.pop("grid")}, "malformed"),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered_copy_is_rejected(made, tmp_path, kind):
    options, expected = TAMPERED[kind]
    assert expected in reason(rewrite(made[0], tmp_path / "x.zip", **options), made[2])


@pytest.mark.parametrize(
    "change", [flip, lambda code: b"", lambda code: code[: len(code) // 2], lambda code: code + b"1234"]
)
def test_changed_message_is_rejected_though_its_digest_fits(made, tmp_path, change):
    digest = hashlib.sha256(change(verifier.read_certificate(made[0])[1])).hexdigest()
    path = rewrite(made[0], tmp_path / "x.zip", lambda m: m.__setitem__("message_sha256", digest), change)
    assert reason(path, made[2])


def test_data_that_are_no_independent_draws_are_rejected(made, tmp_path):
    train = made[2].train
    balanced = np.concatenate([np.flatnonzero(train.labels == c)[:100] for c in range(3)])
    twice = LabelledData(inputs=np.repeat(train.inputs, 2, axis=0), labels=np.repeat(train.labels, 2))
    for expected, data in (("stratified", train.rows(balanced)), ("repeated", twice)):
        digest = verifier.data_sha256(data.inputs, data.labels)
        path = rewrite(made[0], tmp_path / "x.zip", lambda m, digest=digest: m.__setitem__("data_sha256", digest))
        assert expected in reason(path, made[2], train=data)
        with pytest.raises(ConfigError, match=expected):
            module_task(PLAIN, data, num_train=len(data))


def test_verify_command_says_yes_and_no_and_asks_for_the_module(made, tmp_path, capsys):
    path, data, _, result = made
    rest = ["--data", str(data), "--module", PLAIN, "--json", str(tmp_path / "answer.json")]
    assert main(["verify", str(path), *rest]) == 0
    assert f"{result.num_errors} errors in 400 examples" in capsys.readouterr().out
    assert json.loads((tmp_path / "answer.json").read_text())["risk_bound"] == pytest.approx(result.risk_bound)
    assert main(["verify", str(path), "--data", str(data)]) == 2
    assert "read that code" in capsys.readouterr().err


def test_program_answers_no_and_its_usage(made, tmp_path, capsys):
    train = tmp_path / "train.npz"
    made[2].train.save(train)
    assert verifier_main([str(made[0]), str(train), f"--module={NETS}:with_dropout"]) == 1
    assert capsys.readouterr().out.startswith("no: the certificate is of")
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    assert verifier_main([str(tmp_path / "broken.zip"), str(train), f"--module={PLAIN}"]) == 1
    assert "corrupt" in capsys.readouterr().out
    assert verifier_main([str(made[0]), str(train)]) == 2
    assert verifier_main([f"--module={PLAIN}"]) == 2


def test_command_certifies_a_module_and_bounds_another_model_by_it(made, tmp_path, capsys, monkeypatch):
    path, data, task, result = made
    assert task.holdout is not None
    LabelledData(inputs=task.holdout.inputs, labels=np.zeros(80, np.int64)).save(tmp_path / "p.npz")

    def copy(asked, out, **options):
        assert asked.grid == task.grid
        assert options["candidates"] == (ModuleCandidate(projection="sparse", dim=24, levels=3, seed=1),)
        out.write_bytes(path.read_bytes())
        return result

    monkeypatch.setattr("forerun.bounds.module.certify.certify_module", copy)
    choices = ["--projection", "sparse", "--dim", "24", "--levels", "3", "--seed", "1"]
    options = ["--data", str(data), "--module", PLAIN, *choices, "--agreement-with", str(tmp_path / "p.npz")]
    written = [
        "--out",
        str(tmp_path / "c.zip"),
        "--report",
        str(tmp_path / "c.html"),
        "--json",
        str(tmp_path / "c.json"),
    ]
    assert main(["certify", *options, *written]) == 0
    printed = capsys.readouterr().out
    assert f"--module {PLAIN}" in printed
    assert "projection" in printed
    agreement = json.loads((tmp_path / "c.json").read_text())["agreement"]
    assert 20 < agreement["num_disagreements"] < 80  # a model that always says 0 disagrees on the other two classes
    assert "projection" in (tmp_path / "c.html").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--task", "digits"],
        [],
        ["--data", "digits", "--input-scale", "0.5"],
        ["--data", "digits", "--model", "run"],
        ["--data", "absent.npz"],
    ],
)
def test_command_says_what_a_module_needs(tmp_path, capsys, options):
    assert main(["certify", "--module", PLAIN, *options, "--out", str(tmp_path / "c.zip")]) == 2
    assert "--data" in capsys.readouterr().err


def test_options_of_a_module_need_one(made, tmp_path, capsys):
    assert main(["certify", "--task", "digits", "--dim", "40", "--out", str(tmp_path / "c.zip")]) == 2
    assert "--dim: is an option of --module" in capsys.readouterr().err


BAD_FACTORIES = {
    "absent": (f"{NETS}:absent", "cannot be imported"),
    "absent module": ("no_such_module_here:build", "cannot be imported"),
    "no name": (NETS, "PACKAGE.MODULE:FACTORY"),
    "no function": (f"{NETS}:NOT_CALLABLE", "is a int"),
    "fails": (f"{NETS}:fails", "no weights here"),
    "no module": (f"{NETS}:no_module", "made a str"),
    "BatchNorm": (f"{NETS}:normalised", r"between.running_mean.*BatchNorm1d.*GroupNorm"),
    "other values at each call": (f"{NETS}:not_seeded", "start with other values"),
    "infinite start": (f"{NETS}:not_finite", "'last.bias'.*NaN or infinity"),
    "nothing to train": (f"{NETS}:tiny", "trains 0 values"),
    "lazy": (f"{NETS}:lazy", "shape from the data"),
    "function in a function": (lambda: None, "another process"),
}


@pytest.mark.parametrize("kind", BAD_FACTORIES)
def test_factory_that_cannot_be_certified_is_one_clear_error(kind):
    factory, expected = BAD_FACTORIES[kind]
    with pytest.raises(ConfigError, match=expected):
        open_grid(factory, input_shape=(8,), num_classes=3)


BAD_MODULES = {
    "batch statistics": ("Coupled", "other examples in the batch"),
    "dropout that is always on": ("Noisy", "other examples in the batch"),
    "layer hidden from eval": ("Hidden", "other examples in the batch"),
    "division by zero": ("Infinite", "NaN or infinity"),
    "state that changes": ("Counting", "changes its own"),
    "six scores": ("TooManyScores", r"scores \[\d+, 6\]; must be \[\d+, 3\]"),
    "fixed precision": ("Single", "in float64"),
}


@pytest.mark.parametrize("kind", BAD_MODULES)
def test_module_that_cannot_be_certified_is_refused_before_training(kind, tmp_path):
    name, expected = BAD_MODULES[kind]
    task = module_task(f"{NETS}:{name}", clouds(240))
    with pytest.raises(ConfigError, match=expected):
        certify_module(task, tmp_path / "c.zip", candidates=CANDIDATES)
    assert not (tmp_path / "c.zip").exists()


def test_dropout_is_off_and_a_module_is_started_by_its_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    module, make = build_module(module_factories.with_dropout, 3), load_factory(f"{NETS}:with_dropout")
    assert torch.equal(torch.get_rng_state(), state)
    assert start_sha256(module) == start_sha256(build_module(make, 3)) != start_sha256(build_module(make, 2))
    assert set(source_digests(make, module)) == {NETS}
    network = build_subspace(module, projection="kronecker", dim=8, seed=0).double()
    data = clouds(40)
    scores = independent_scores(network, np.ones(8), data.inputs, input_shape=(8,), num_classes=3)
    assert scores.shape == (40, 3)
    assert factory_name(module_factories.with_dropout) == f"{NETS}:with_dropout"


@pytest.mark.parametrize("projection", ["sparse", "fastfood", "kronecker"])
@pytest.mark.usefixtures("in_this_process")
def test_every_projection_is_paid_and_read_back(made, tmp_path, projection):
    """The dense one is that of the other tests."""
    search = SearchConfig(num_steps=60, nat_weights=(2.0,), num_sweeps=0)
    candidate = ModuleCandidate(projection=projection, dim=16, levels=3, search=search)
    result = certify_module(made[2], tmp_path / "c.zip", candidates=(candidate,))
    assert result.choices["projections"] == projection
    assert not result.is_vacuous
    assert judge(tmp_path / "c.zip", made[2])["num_errors"] == result.num_errors


@pytest.mark.usefixtures("in_this_process")
def test_base_brings_statistics_and_is_named_independent(tmp_path):
    """With a base a normalisation is frozen; the certificate can't be checked without it, or with another."""
    torch.manual_seed(1)
    source = module_factories.normalised()
    source(torch.randn(100, 8))
    base, factory = tmp_path / "base.safetensors", f"{NETS}:normalised"
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("last")}
    save_file(state, base)
    with pytest.raises(ConfigError, match="--base-is-independent"):
        module_task(factory, clouds(240), base=base)
    task = module_task(factory, clouds(240), base=base, base_is_independent=True)
    built = build_module(module_factories.normalised, 0, base=base)
    torch.testing.assert_close(built.state_dict()["between.running_var"], state["between.running_var"])
    certificate = tmp_path / "c.zip"
    result = certify_module(task, certificate, candidates=CANDIDATES)
    assert "base" in next(line.why for line in result.ledger if line.name == "start")
    assert judge(certificate, task, factory, base)["num_errors"] == result.num_errors
    assert "needs its base" in reason(certificate, task, factory)
    save_file({**state, "between.running_var": state["between.running_var"] + 1}, tmp_path / "other.safetensors")
    assert "start for seed" in reason(certificate, task, factory, tmp_path / "other.safetensors")
    save_file({"between.strange": torch.zeros(2)}, tmp_path / "strange.safetensors")
    with pytest.raises(ConfigError, match="no such tensor"):
        build_module(module_factories.normalised, 0, base=tmp_path / "strange.safetensors")
    (tmp_path / "strange.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        build_module(module_factories.normalised, 0, base=tmp_path / "strange.safetensors")
    silent = rewrite(certificate, tmp_path / "x.zip", set_grid("base_is_independent", False))
    assert "nobody says" in reason(silent, task, factory, base)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dim": 1000}, "dim=1000: must be 8, 16, 24, 40, 60; the module trains 75 values"),
        ({"projection": "film"}, "projection=film"),
        ({"dim": 16, "seed": 9}, "seed=9"),
        ({"dim": 16, "levels": 4}, "levels=4"),
    ],
)
def test_candidate_outside_the_grid_is_refused(made, tmp_path, options, expected):
    with pytest.raises(ConfigError, match=expected):
        certify_module(made[2], tmp_path / "c.zip", candidates=(ModuleCandidate(**options),))


def test_too_little_data_is_an_error_before_training_with_the_affordable_bits(tmp_path):
    task = module_task(PLAIN, clouds(30))
    with pytest.raises(ConfigError, match=r"num_train=25: too few .* may take 35 bits.* takes over 55"):
        certify_module(task, tmp_path / "c.zip", candidates=(ModuleCandidate(dim=40, levels=3),))


def test_datasets_of_pytorch_are_read_once_and_in_order():
    data = clouds(240)
    dataset = TensorDataset(torch.from_numpy(data.inputs).view(-1, 2, 4), torch.from_numpy(data.labels))
    found, shape = read_dataset(dataset)
    assert shape == (2, 4)
    assert (found.inputs == data.inputs).all()
    assert (found.labels == data.labels).all()
    task = module_task(PLAIN, dataset, input_shape=(8,))
    assert (task.grid.input_shape, task.grid.num_classes, len(task.train)) == ((8,), 3, 200)
    with pytest.raises(ConfigError, match="has 9 numbers, an example 8"):
        module_task(PLAIN, dataset, input_shape=(3, 3))


class Augmented(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(4), index % 2


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Augmented(), "differs when read again"),
        ([(torch.zeros(2), 0), (torch.zeros(3), 1)], "all of one shape"),
        ([(torch.zeros(2), "cat")], "and a class"),
        (iter([]), "needs a length"),
    ],
)
def test_dataset_that_cannot_be_certified_is_refused(dataset, expected):
    with pytest.raises(ConfigError, match=expected):
        read_dataset(dataset)


def test_standard_options_leave_out_dimensions_above_the_module():
    assert standard_choices(75)["subspace_dims"] == [8, 16, 24, 40, 60]
    assert standard_choices(10**6)["subspace_dims"][-1] == 1000
