"""Sampled text: drawn from the law it says, kept whole and once, mixed into batches by its share."""

import threading

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from forerun.cli.main import main
from forerun.core.errors import CheckpointError, ConfigError
from forerun.core.rng import gumbel_argmax
from forerun.models.ensemble_file import EnsembleFile
from forerun.pretraining import sampled_text
from forerun.pretraining.batches import EpochBatches
from forerun.pretraining.config import PretrainConfig, ShapeConfig
from forerun.pretraining.distill import Distillation, DistillConfig, distill, distill_identity, teacher_law
from forerun.pretraining.initialisation import fresh_decoder
from forerun.pretraining.mixture import MixedBatches, sampled_loss
from forerun.pretraining.run_store import read_run
from forerun.pretraining.sampled_text import SampledTextConfig, sampled_rows
from forerun.pretraining.sampling import CHAIN_ROWS, EnsembleSampler, SampledRows
from forerun.pretraining.train import pretrain

VOCAB, WIDTH, END = 40, 16, 7
SHAPES = (
    ShapeConfig(hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2),
    ShapeConfig(hidden_size=8, intermediate_size=16, num_layers=1, num_heads=1),
)


def decoders():
    """Two of one shape, which are stacked, and one of another between them; sharp enough to differ."""
    made = [
        fresh_decoder(SHAPES[kind], vocab_size=VOCAB, max_len=WIDTH, seed=seed).eval().requires_grad_(False)
        for seed, kind in enumerate((0, 1, 0))
    ]
    for decoder in made:
        decoder.lm_head.weight *= 3
    return made


def sampler(**changes):
    options = {
        "average": "probability",
        "source": "ensemble",
        "end_of_text_id": END,
        "sequence_tokens": WIDTH,
        "num_kept": 5,
    }
    return EnsembleSampler(decoders(), **(options | changes))


def test_chains_begin_with_an_end_of_text_and_go_on_where_their_last_row_ended():
    rows = sampler().chains(3, 4, seed=1)
    assert rows.ids.shape == (4 * CHAIN_ROWS, WIDTH + 1)
    by_chain = rows.ids.view(4, CHAIN_ROWS, WIDTH + 1)
    assert (by_chain[:, 0, 0] == END).all()
    assert torch.equal(by_chain[:, 1:, :2], by_chain[:, :-1, -2:]), "an eighth of a row is carried over"
    assert len({tuple(row) for row in rows.ids.tolist()}) == len(rows)
    apart = [sampler().chains(first, 2, seed=1).ids for first in (3, 5)]
    assert torch.equal(torch.cat(apart), rows.ids), "a chain does not depend on those beside it"
    assert not torch.equal(sampler().chains(3, 4, seed=2).ids, rows.ids)


@pytest.mark.parametrize("average", ["probability", "logit"])
def test_what_is_kept_is_the_law_that_the_ensemble_has_when_it_reads_the_row_whole(average):
    rows = sampler(average=average).chains(0, 3, seed=0)
    inputs = rows.ids[:, :-1].long()
    law = teacher_law(decoders(), inputs, average=average).exp()
    expected = law.topk(5, dim=-1).values
    assert (rows.kept_probs[..., :-1] >= rows.kept_probs[..., 1:]).all()
    torch.testing.assert_close(rows.kept_probs.float(), expected, atol=1e-3, rtol=2e-3)
    torch.testing.assert_close(law.gather(-1, rows.kept_ids.long()), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("source", ["ensemble", "members"])
def test_each_token_is_the_keyed_draw_from_the_law_of_the_one_who_writes(source):
    rows = sampler(source=source).chains(0, 6, seed=5)
    made = decoders()
    order = [made[0], made[2], made[1]]  # those of one shape stand together
    ids = rows.ids.view(6, CHAIN_ROWS, WIDTH + 1).long()
    for chain in range(6):
        position = 1
        for row, start in zip(ids[chain], (1, 2, 2, 2), strict=True):
            writers = order if source == "ensemble" else [order[chain % 3]]
            law = teacher_law(writers, row[None, :-1], average="probability")[0].numpy()
            for place in range(start, WIDTH + 1):
                assert row[place] == gumbel_argmax(law[place - 1], ids=None, seed=5, request=chain, position=position)
                position += 1


def test_rows_longer_than_the_members_context_are_refused():
    with pytest.raises(ConfigError, match=r"sequence_tokens=17.*context is 16"):
        sampler(sequence_tokens=17)


def test_the_loss_of_sampled_text_is_the_whole_cross_entropy_in_the_mean():
    generator = torch.Generator().manual_seed(0)
    p, logits = torch.randn(9, generator=generator).softmax(0), torch.randn(9, generator=generator)
    likeliest = p.topk(4)
    expected = cross_entropy(logits, p)
    mean = sum(
        p[drawn]
        * sampled_loss(
            logits.view(1, 1, 9),
            SampledRows(
                ids=torch.tensor([[0, drawn]]),
                kept_ids=likeliest.indices.view(1, 1, 4),
                kept_probs=likeliest.values.view(1, 1, 4),
            ),
        )
        for drawn in range(9)
    )
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("share", [0.25, 0.75, 0.9])
def test_batches_keep_the_share_and_the_order_of_the_text(corpus, share):
    text = EpochBatches(corpus.train.prefix(3000), sequence_tokens=WIDTH, batch_sequences=8, seed=3)
    rows = sampler().chains(0, 3, seed=0)
    mixed = MixedBatches(text, rows, share=share, batch_sequences=8, seed=3)
    assert mixed.steps_per_epoch == round(text.steps_per_epoch / (1 - share))
    batches = [mixed.at(step) for step in range(24)]
    assert {len(batch.text) + len(batch.sampled) for batch in batches} == {8}
    num_sampled = sum(len(batch.sampled) for batch in batches)
    assert num_sampled == int(24 * 8 * share)
    read = torch.cat([batch.text for batch in batches])
    assert torch.equal(read, text.rows(0, len(read)))
    places = {tuple(row): place for place, row in enumerate(rows.ids.tolist())}
    seen = [places[tuple(row)] for batch in batches for row in batch.sampled.ids.tolist()]
    passes = [seen[first : first + len(rows)] for first in range(0, len(seen) - len(rows) + 1, len(rows))]
    assert all(sorted(some) == list(range(len(rows))) for some in passes)
    assert len(passes) < 2 or passes[0] != passes[1]
    again = mixed.at(0)
    assert torch.equal(again.sampled.kept_ids, batches[0].sampled.kept_ids)


@pytest.fixture(scope="module")
def member(corpus, tiny, tmp_path_factory):
    return pretrain(corpus, tmp_path_factory.mktemp("members"), tiny(num_epochs=1)).folder


def sampled(corpus, store, member, num_tokens, **changes):
    config = SampledTextConfig(num_tokens=num_tokens, **changes)
    return sampled_rows(corpus, store, [read_run(member)], config, average="probability", sequence_tokens=32)


def test_text_is_made_once_more_of_it_adds_and_a_changed_shard_is_refused(corpus, member, tmp_path, monkeypatch):
    monkeypatch.setattr(sampled_text, "SHARD_CHAINS", 2)  # of 8 rows, 256 tokens
    first = sampled(corpus, tmp_path, member, 300)
    [folder] = (tmp_path / ".sampled").iterdir()
    assert sorted(path.name for path in folder.glob("rows*")) == ["rows-00000.safetensors", "rows-00001.safetensors"]
    (folder / ".rows-00002.safetensors.partial").write_bytes(b"cut")
    more = sampled(corpus, tmp_path, member, 700)
    assert (len(first), len(more)) == (9, 21)
    assert torch.equal(more.ids[:9], first.ids)
    assert len(list(folder.glob("rows*"))) == 3
    monkeypatch.setattr(sampled_text, "EnsembleSampler", None)
    assert torch.equal(sampled(corpus, tmp_path, member, 700).kept_probs, more.kept_probs)
    path = folder / "rows-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rows-00001.safetensors: its SHA-256 is .*delete it"):
        sampled(corpus, tmp_path, member, 700)
    path.write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"cannot be read"):
        sampled(corpus, tmp_path, member, 700)
    with pytest.raises(ConfigError, match="less than a row of 32"):
        sampled(corpus, tmp_path, member, 31)


def test_processes_share_the_work_and_wait_for_what_another_is_at(tmp_path):
    def make(number):
        made.append(number)
        if len(made) == 2:
            others_done.set()
        part = torch.full((1, 1, 1), number)
        return SampledRows(ids=part[0].clone(), kept_ids=part, kept_probs=part.half())

    made, others_done = [], threading.Event()
    work = threading.Thread(
        target=sampled_text._make_missing, args=(tmp_path, 3, make), kwargs={"report": lambda done, total: None}
    )
    with sampled_text._held(sampled_text._path(tmp_path, 0), is_waiting=False) as is_mine:
        assert is_mine
        work.start()
        assert others_done.wait(60)
    work.join(60)
    assert made == [1, 2, 0]
    assert sampled_text._read(sampled_text._path(tmp_path, 0)).ids.item() == 0


def test_students_of_sampled_text_are_runs_of_their_own(corpus, member, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sampled_text, "SHARD_CHAINS", 4)
    teacher = EnsembleFile(members=(member,), average="probability")
    some = SampledTextConfig(num_tokens=600)
    kinds = [
        Distillation(),
        Distillation(sampled=some),
        Distillation(sampled=some, loss="text"),
        Distillation(sampled=SampledTextConfig(num_tokens=600, source="members"), sampled_share=0.5),
    ]
    student = tiny(seed=7, num_epochs=1, unique_tokens=2000)
    runs = [distill(corpus, tmp_path, teacher, DistillConfig(student=student, distillation=kind)) for kind in kinds]
    assert len({run.folder for run in runs}) == 4
    steps = [run.result()["num_steps"] for run in runs]
    assert steps == [7, 28, 28, 14]
    assert all(np.isfinite(run.result()["tune"]["loss_nats"]) for run in runs)
    assert len(list((tmp_path / ".sampled").iterdir())) == 2, "of the ensemble and of its members"
    monkeypatch.setattr("forerun.pretraining.train.TrainingLoop", None)
    assert distill(corpus, tmp_path, teacher, DistillConfig(student=student, distillation=kinds[1])).folder == (
        runs[1].folder
    )


def test_students_of_the_text_alone_keep_their_names(tmp_path):
    teacher = EnsembleFile(members=(tmp_path / "a", tmp_path / "b"), average="logit")
    found = distill_identity("0" * 64, teacher, DistillConfig(student=PretrainConfig(), distillation=Distillation()))
    assert found["teacher"] == {"average": "logit", "members": ["a", "b"], "weight": 0.8}
    assert Distillation(loss="text", sampled=SampledTextConfig(num_tokens=9)).identity().keys() == {
        "loss",
        "sampled",
        "sampled_share",
    }, "a weight that nothing is weighed with is no difference"


def test_a_distillation_that_can_not_be_is_refused():
    with pytest.raises(ConfigError, match="the teacher would have no say"):
        Distillation(loss="text")
    with pytest.raises(ConfigError, match=r"sampled_share=1.*below 1"):
        Distillation(sampled_share=1)
    with pytest.raises(ConfigError, match="must be one of kl, text"):
        Distillation(loss="mse")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="must be one of ensemble, members"):
        SampledTextConfig(num_tokens=9, source="web")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="num_kept=0"):
        SampledTextConfig(num_tokens=9, num_kept=0)


def test_the_command_samples_and_distils(prepared, member, tmp_path, capsys):
    command = [
        *("pretrain", "distill", "--ensemble", str(member), "--data", str(prepared), "--out", str(tmp_path)),
        *("--size", "6k", "--epochs", "1", "--sequence-tokens", "16", "--unique-tokens", "600"),
        *("--sampled-tokens", "64", "--sampled-share", "0.5", "--sampled-from", "members", "--loss", "text"),
    ]
    assert main(command) == 0
    run = read_run(tmp_path / capsys.readouterr().out.splitlines()[-1])
    assert run.identity["teacher"]["sampled"]["source"] == "members"
    assert main([*command, "--sampled-tokens", "8"]) == 2
    assert "num_tokens=8: is less than a row of 16" in capsys.readouterr().err
