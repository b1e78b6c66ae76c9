"""The published format of LeWorldModel: tiny random checkpoints, the encoder held against transformers'."""

import json

import pytest
import torch
from torch import nn

from forerun.cli.main import main
from forerun.core.errors import CheckpointError
from forerun.worldmodels.jepa import published
from forerun.worldmodels.jepa.checkpoint import load_model
from forerun.worldmodels.jepa.encoder import normalised
from forerun.worldmodels.jepa.published import load_published

transformers = pytest.importorskip("transformers")

CONFIG = {
    "encoder": {"_target_": "vit_hf", "size": "pico", "patch_size": 4, "image_size": 8},
    "predictor": {
        "num_frames": 3, "input_dim": 12, "hidden_dim": 12, "output_dim": 12, "depth": 2, "heads": 2, "dim_head": 5,
        "mlp_dim": 7, "dropout": 0.1, "emb_dropout": 0.0,
    },
    "action_encoder": {"input_dim": 4, "emb_dim": 12, "smoothed_dim": 10},
    "projector": {"input_dim": 12, "output_dim": 12, "hidden_dim": 9},
    "pred_proj": {"input_dim": 12, "output_dim": 12, "hidden_dim": 9},
}  # fmt: skip
PICO = {"width": 12, "num_layers": 2, "num_heads": 2, "mlp_width": 16}


@pytest.fixture(autouse=True)
def pico(monkeypatch):
    monkeypatch.setitem(published._VIT_SIZES, "pico", PICO)


def projector():
    return {"net": nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.GELU(), nn.Linear(9, 12))}


def block():
    return nn.ModuleDict({
        "attn": nn.ModuleDict(
            {
                "norm": nn.LayerNorm(12),
                "to_qkv": nn.Linear(12, 30, bias=False),
                "to_out": nn.ModuleList([nn.Linear(10, 12)]),
            }
        ),
        "mlp": nn.ModuleDict(
            {"net": nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 7), nn.GELU(), nn.Identity(), nn.Linear(7, 12))}
        ),
        "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(12, 72)),
    })  # fmt: skip


@pytest.fixture
def reference():
    """Modules under the published names, with random weights and running statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = transformers.ViTModel(
            transformers.ViTConfig(
                hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8,
                patch_size=4,
            ),
            add_pooling_layer=False,
        )  # fmt: skip
        modules = nn.ModuleDict(
            {
                "encoder": vit,
                "predictor": nn.ModuleDict(
                    {
                        "transformer": nn.ModuleDict(
                            {"norm": nn.LayerNorm(12), "layers": nn.ModuleList([block(), block()])}
                        )
                    }
                ),
                "action_encoder": nn.ModuleDict(
                    {
                        "patch_embed": nn.Conv1d(4, 10, 1),
                        "embed": nn.Sequential(nn.Linear(10, 48), nn.SiLU(), nn.Linear(48, 12)),
                    }
                ),
                "projector": nn.ModuleDict(projector()),
                "pred_proj": nn.ModuleDict(projector()),
            }
        )
        modules["predictor"].register_parameter("pos_embedding", nn.Parameter(torch.randn(1, 3, 12)))
        for name, tensor in modules.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else 0.4 * torch.randn_like(tensor))
    return modules.eval()


def write(folder, weights, config=CONFIG):
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(weights, folder / "weights.pt")
    return folder


def pixels():
    return torch.randint(0, 256, (5, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def predicted_by_hand(modules, latents, actions):
    """The published predictor, step by step: what the names of the tensors mean."""
    condition = modules["action_encoder"]["embed"](
        modules["action_encoder"]["patch_embed"](actions.transpose(1, 2)).transpose(1, 2)
    )
    tokens = latents + modules["predictor"].pos_embedding[:, : latents.shape[1]]
    for layer in modules["predictor"]["transformer"]["layers"]:
        parts = layer["adaLN_modulation"](condition).chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        plain = nn.functional.layer_norm(tokens, (12,), eps=1e-6)
        attention = layer["attn"]
        heads = attention["to_qkv"](attention["norm"](plain * (1 + scale) + shift)).chunk(3, dim=-1)
        queries, keys, values = (part.unflatten(-1, (2, 5)).transpose(1, 2) for part in heads)
        weights = queries @ keys.transpose(-1, -2) / 5**0.5
        later = torch.ones(weights.shape[-2:]).triu(1).bool()
        mixed = weights.masked_fill(later, -torch.inf).softmax(-1) @ values
        tokens = tokens + gate * attention["to_out"][0](mixed.transpose(1, 2).flatten(2))
        plain = nn.functional.layer_norm(tokens, (12,), eps=1e-6)
        tokens = tokens + mlp_gate * layer["mlp"]["net"](plain * (1 + mlp_scale) + mlp_shift)
    tokens = modules["predictor"]["transformer"]["norm"](tokens)
    return modules["pred_proj"]["net"](tokens.flatten(0, 1)).unflatten(0, latents.shape[:2])


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_published_model_is_the_same_function(reference, tmp_path, wrapped):
    weights = reference.state_dict()
    model = load_published(write(tmp_path, {"state_dict": weights} if wrapped else weights))
    with torch.no_grad():
        states = reference["encoder"](normalised(pixels())).last_hidden_state[:, 0]
        torch.testing.assert_close(model.encode(pixels()), reference["projector"]["net"](states), rtol=1e-4, atol=1e-5)
        latents, actions = normal(3, 3, 12), normal(3, 3, 4, seed=1)
        torch.testing.assert_close(
            model.predict(latents, actions), predicted_by_hand(reference, latents, actions), rtol=1e-4, atol=1e-5
        )


def test_the_command_writes_a_model_of_ours(reference, tmp_path, capsys):
    write(tmp_path, reference.state_dict())
    assert main(["world", "convert", str(tmp_path), "--out", str(tmp_path / "model")]) == 0
    assert "name --data" in capsys.readouterr().out
    model, _ = load_model(tmp_path / "model")
    assert torch.equal(model.encode(pixels()), load_published(tmp_path).encode(pixels()))
    assert main(["world", "convert", str(tmp_path / "model"), "--out", str(tmp_path / "again")]) == 2
    assert "holds no readable LeWorldModel checkpoint" in capsys.readouterr().err


def test_names_of_older_transformers_mean_the_same(reference, tmp_path):
    def old(name):
        if not name.startswith("encoder.layers."):
            return name
        name = name.replace("encoder.layers.", "encoder.encoder.layer.")
        for kind, word in (("q", "query"), ("k", "key"), ("v", "value")):
            name = name.replace(f"attention.{kind}_proj", f"attention.attention.{word}")
        name = name.replace("attention.o_proj", "attention.output.dense")
        return name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")

    weights = reference.state_dict()
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    first = load_published(write(tmp_path / "new", weights))
    second = load_published(write(tmp_path / "old", {old(name): tensor for name, tensor in weights.items()}))
    assert torch.equal(first.encode(pixels()), second.encode(pixels()))


def test_what_is_not_understood_is_refused(reference, tmp_path):
    weights = reference.state_dict()
    for config, extra, message in (
        (CONFIG, {"decoder.weight": torch.zeros(1)}, "decoder.weight"),
        (CONFIG | {"encoder": CONFIG["encoder"] | {"size": "giant"}}, {}, "known are"),
        (CONFIG | {"action_encoder": CONFIG["action_encoder"] | {"emb_dim": 8}}, {}, "emb_dim=8"),
        ({"encoder": {}}, {}, "KeyError"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_published(write(tmp_path, weights | extra, config))
    (tmp_path / "weights.pt").write_bytes(b"none")
    with pytest.raises(CheckpointError, match="holds no readable"):
        load_published(tmp_path)
    (tmp_path / "weights.pt").unlink()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"none of weights\.pt"):
        load_published(tmp_path)
