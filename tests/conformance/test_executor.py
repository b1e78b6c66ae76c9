"""What every executor does: the same runs wherever they are made, each once, failures told when the rest is done."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from forerun.core.errors import ConfigError, TrainingError
from forerun.pretraining.config import PretrainConfig, ShapeConfig
from forerun.pretraining.executor import Executor, LocalExecutor
from forerun.pretraining.grid import outcome_of
from forerun.pretraining.jobs import Job
from forerun.pretraining.prepare import PrepareConfig, prepare_corpus
from forerun.pretraining.ray_executor import RayExecutor

CONFIG = PretrainConfig(
    shape=ShapeConfig(hidden_size=8, intermediate_size=16, num_layers=1, num_heads=1),
    unique_tokens=1000,
    num_epochs=1,
    sequence_tokens=16,
    batch_sequences=8,
    tune_tokens=500,
)


def local() -> Executor:
    return LocalExecutor(1)


def processes() -> Executor:
    return LocalExecutor(2)


def on_ray() -> Executor:
    pytest.importorskip("ray")
    return RayExecutor(num_workers=2)


@pytest.fixture(scope="module", params=[local, pytest.param(processes), pytest.param(on_ray, marks=pytest.mark.slow)])
def executor(request):
    with request.param() as opened:
        yield opened


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    words = ("duck", "river", "stone", "lamp", "garden", "letter", "sees", "hides")
    for number in range(30):
        source = random.Random(number)
        (folder / f"{number:02}.txt").write_text(" ".join(source.choices(words, k=80)))
    prepare_corpus(str(folder), folder / "data", PrepareConfig(vocab_size=280, min_split_tokens=64))
    return folder / "data"


@dataclass
class Jobs:
    data: Path
    store: Path

    def seed(self, seed: int, **changes) -> Job:
        options = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
        return Job(data=self.data, store=self.store, config=PretrainConfig(**(options | {"seed": seed} | changes)))


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory) -> dict[int, bytes]:
    """Weights of two runs that this process made itself, on one thread."""
    jobs = Jobs(data, tmp_path_factory.mktemp("expected"))
    return {seed: weights(outcome_of(jobs.seed(seed), lambda done, total, detail: None)) for seed in (0, 1)}


def weights(run) -> bytes:
    return (run.folder / "model" / "model.safetensors").read_bytes()


def test_runs_are_the_same_wherever_they_are_made(executor, expected, data, tmp_path):
    jobs, told = Jobs(data, tmp_path), []
    order = [jobs.seed(1), jobs.seed(0), jobs.seed(1)]
    runs = executor.make(order, report=lambda done, total, detail: told.append((done, total, detail)))
    assert [weights(run) for run in runs] == [expected[1], expected[0], expected[1]], "not bit for bit, or out of order"
    assert [run.folder.parent for run in runs] == [tmp_path] * 3
    assert len(list(tmp_path.glob("*/result.json"))) == 2
    shares = [done / total for done, total, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert told[-1][2].startswith("2 of 2 runs")


def test_what_is_done_is_not_made_again(executor, data, tmp_path):
    jobs = Jobs(data, tmp_path)
    [first] = executor.make([jobs.seed(0)])
    before = (first.folder / "result.json").stat().st_mtime_ns
    runs = executor.make([jobs.seed(0), jobs.seed(1)])
    assert runs[0].folder == first.folder
    assert (first.folder / "result.json").stat().st_mtime_ns == before


def test_a_run_that_fails_does_not_stop_the_others(executor, data, tmp_path):
    jobs = Jobs(data, tmp_path)
    with pytest.raises(TrainingError, match=r"1 of 2 runs failed.*unique_tokens=99999999"):
        executor.make([jobs.seed(0, unique_tokens=99_999_999), jobs.seed(0)])
    assert len(list(tmp_path.glob("*/result.json"))) == 1


def test_nothing_to_make_is_nothing_made(executor):
    assert executor.make([]) == []


def test_a_run_out_of_bounds_is_none(executor, data, tmp_path):
    """A rate of 3e37 sends the weights beyond float32 in a step."""
    jobs = Jobs(data, tmp_path)
    assert executor.make([jobs.seed(0, learning_rate=3e37, weight_decay=0.0), jobs.seed(0)])[0] is None


@pytest.mark.parametrize(
    "options",
    [{"num_workers": 0}, {"num_workers": 1, "address": "auto"}, {"gpus_per_run": 1.5}, {"gpus_per_run": -0.5}],
)
def test_options_of_ray_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        RayExecutor(**options)


def test_a_daemon_that_does_not_start_is_one_line(monkeypatch):
    ray = pytest.importorskip("ray")

    def fails(**options):
        raise Exception("The current node timed out during startup.\nand much more")  # as Ray does

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(TrainingError, match=r"^Ray did not start \(The current node timed out during startup\.\); "):
        RayExecutor(num_workers=1)
