"""``forerun world export``: programs that say what the model says, for any number of sequences."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from simulated.worlds import TINY_MODEL

from forerun.cli.main import main
from forerun.core.errors import ConfigError
from forerun.data.normalizer import Normalizer
from forerun.nn.first_weights import seeded_weights
from forerun.worldmodels.jepa.checkpoint import save_model
from forerun.worldmodels.jepa.export import export_model
from forerun.worldmodels.jepa.model import Jepa

HAS_ONNX = find_spec("onnxscript") is not None and find_spec("onnxruntime") is not None


def build(history=2):
    """A model that looks back on so many frames, whose predictor is not the identity that a fresh one is."""
    units = Normalizer(torch.tensor([0.5, 0.0]), torch.tensor([2.0, 1.0]))
    config = replace(TINY_MODEL, predictor=replace(TINY_MODEL.predictor, history=history, num_blocks=1))
    with seeded_weights(0, "test"):
        model = Jepa(config, action_dim=2, action_normalizer=units)
        for parameter in model.predictor.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def cases(model, record):
    """Yield (name of a program, inputs by name, what the model says) for rows it was not exported with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for count in (1, 5):
            frames = torch.randint(0, 256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8)
            yield record["encoder"], {"pixels": frames}, model.encode(frames)
            for num_frames, name in enumerate(record["predictors"], start=1):
                latents = torch.randn(count, num_frames, 8, generator=generator)
                raw = torch.randn(count, num_frames, 2, generator=generator)
                raw[0, -1, 0] = torch.nan  # as where an episode ends
                wanted = model.predict(latents, model.standardised(raw))[:, -1]
                yield name, {"latents": latents, "actions": raw}, wanted


@pytest.mark.slow
def test_programs_are_the_model(tmp_path, capsys):
    model, folder = build(), tmp_path / "programs"
    save_model(model, tmp_path / "model", record={})
    formats = ["torch", "onnx"] if HAS_ONNX else ["torch"]
    command = ["world", "export", "--model", str(tmp_path / "model"), "--out", str(folder), "--format", *formats]
    assert main([*command, "--json", str(tmp_path / "record.json")]) == 0
    assert str(folder / "encoder.pt2") in capsys.readouterr().out
    record = json.loads((folder / "programs.json").read_text())
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert record["predictors"] == ["predictor-1", "predictor-2"]
    programs = {path.stem: torch.export.load(path).module() for path in folder.glob("*.pt2")}
    for name, inputs, wanted in cases(model, record):
        torch.testing.assert_close(programs[name](*inputs.values()), wanted)
    if HAS_ONNX:
        import onnxruntime

        sessions = {path.stem: onnxruntime.InferenceSession(str(path)) for path in folder.glob("*.onnx")}
        for name, inputs, wanted in cases(model, record):
            [found] = sessions[name].run(["embeddings"], {key: value.numpy() for key, value in inputs.items()})
            torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


def test_what_can_not_be_written_is_refused_first(tmp_path, capsys):
    with pytest.raises(ConfigError, match="one or more of torch, onnx"):
        export_model(build(), tmp_path / "programs", formats=())
    save_model(build(), tmp_path / "model", record={})
    capsys.readouterr()
    assert main(["world", "export", "--model", str(tmp_path / "model"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is not empty" in error
    assert error.count("\n") == 1
