"""One model over two processes against the same model in one: same losses, same files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forerun.core.errors import ConfigError
from forerun.pretraining.train import pretrain
from forerun.training.devices import World, training_device

TOGETHER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
from conftest import tiny_config
from forerun.core.errors import ConfigError
from forerun.pretraining.prepared_corpus import open_corpus
from forerun.pretraining.train import pretrain
from forerun.training.loop import TrainingLoop

corpus, store = open_corpus(Path(sys.argv[1])), Path(sys.argv[2])
for options, message in (({"batch_sequences": 7}, "batch_sequences=7"), ({"optimizer": "muon"}, "optimizer='muon'")):
    try:
        pretrain(corpus, store, tiny_config(**options))
    except ConfigError as error:
        assert message in str(error)
    else:
        raise AssertionError(options)

class Cut(Exception):
    pass

def cut(done, total, detail):
    if done == 6:
        raise Cut

save = TrainingLoop._save
try:
    TrainingLoop._save = lambda self, losses: (save(self, losses), cut(6 if len(losses) == 4 else 0, 0, ""))
    pretrain(corpus, store, tiny_config())
except Cut:
    TrainingLoop._save = save
pretrain(corpus, store, tiny_config())
"""


def curve(folder: Path) -> list[float]:
    return json.loads((folder / "train_losses.json").read_text())


@pytest.mark.slow
def test_two_processes_train_what_one_does(prepared, corpus, tmp_path, tiny):
    """Cut after the first checkpoint and resumed besides: the checkpoint is one file of whole tensors."""
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    arguments = [os.fspath(prepared), os.fspath(tmp_path / "two"), os.fspath(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "FORERUN_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:5000]
    alone = pretrain(corpus, tmp_path / "one", tiny())
    together = tmp_path / "two" / alone.folder.name
    assert curve(together) == pytest.approx(curve(alone.folder), abs=1e-4)
    one, two = (json.loads((folder / "result.json").read_text()) for folder in (alone.folder, together))
    assert two["tune"]["loss_nats"] == pytest.approx(one["tune"]["loss_nats"], abs=1e-4)
    assert two["num_params"] == one["num_params"]
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert sorted(path.name for path in together.iterdir()) == sorted(path.name for path in alone.folder.iterdir())
    weights, expected = (load_file(folder / "model" / "model.safetensors") for folder in (together, alone.folder))
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in expected.items()}
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-3)


def test_a_batch_is_shared_row_by_row():
    batch = torch.arange(12).view(6, 2)
    parts = [World(rank=rank, size=3, device=torch.device("cpu")).rows(batch) for rank in range(3)]
    assert torch.equal(torch.cat(parts).sort(dim=0).values, batch)
    with pytest.raises(ConfigError, match=r"batch_sequences=6.*4 processes"):
        World(rank=0, size=4, device=torch.device("cpu")).rows(batch)


def test_the_device_is_what_the_variable_says(monkeypatch):
    monkeypatch.setenv("FORERUN_DEVICE", "cpu")
    assert training_device() == torch.device("cpu")
    monkeypatch.setenv("FORERUN_DEVICE", "tpu")
    with pytest.raises(ConfigError, match="FORERUN_DEVICE='tpu'"):
        training_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("FORERUN_DEVICE", "cuda")
    with pytest.raises(ConfigError, match="finds no GPU"):
        training_device()
    monkeypatch.delenv("FORERUN_DEVICE")
    assert training_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert training_device() == torch.device("cuda", 1)
