"""Curves for others to look at."""

import functools
import sys
import types

import pytest

from forerun.core.errors import ConfigError, MissingDependencyError
from forerun.training.trackers import TENSORBOARD_FOLDER, open_trackers


def test_without_the_variable_nobody_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("FORERUN_TRACKERS", raising=False)
    assert open_trackers(tmp_path, {}, first_step=1) == []
    monkeypatch.setenv("FORERUN_TRACKERS", "paper")
    with pytest.raises(ConfigError, match=r"'paper'.*tensorboard, wandb, trackio"):
        open_trackers(tmp_path, {}, first_step=1)


def test_tensorboard_shows_the_curve_of_a_run_that_went_on(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("FORERUN_TRACKERS", "tensorboard")
    for first_step, losses in ((1, {1: 5.0, 2: 4.0, 3: 9.0}), (3, {3: 3.0, 4: 2.0})):
        [tracker] = open_trackers(tmp_path, {}, first_step=first_step)
        for step, loss in losses.items():
            tracker.add({"train/loss_nats": loss}, step)
        tracker.close()
    events = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER)).Reload()
    curve = {event.step: event.value for event in events.Scalars("train/loss_nats")}
    assert curve == {1: 5.0, 2: 4.0, 3: 3.0, 4: 2.0}, "what came after the checkpoint is replaced"


def test_a_service_gets_the_run_its_values_and_its_end(tmp_path, monkeypatch):
    """Against functions that write down how they were called: both services have these three."""
    calls = []
    service = types.ModuleType("trackio")
    for name in ("init", "log", "finish"):
        setattr(
            service,
            name,
            functools.partial(lambda called, *args, **options: calls.append((called, args, options)), name),
        )
    monkeypatch.setitem(sys.modules, "trackio", service)
    monkeypatch.setenv("FORERUN_TRACKERS", "trackio")
    [tracker] = open_trackers(tmp_path / "abc", {"kind": "pretrain"}, first_step=1)
    tracker.add({"train/loss_nats": 2.0}, 7)
    tracker.close()
    assert calls == [
        ("init", (), {"project": "forerun", "name": "abc", "config": {"kind": "pretrain"}}),
        ("log", ({"train/loss_nats": 2.0},), {"step": 7}),
        ("finish", (), {}),
    ]


def test_a_package_that_is_missing_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("FORERUN_TRACKERS", "wandb")
    with pytest.raises(MissingDependencyError, match=r"--tracker wandb needs.*forerun\[track\]"):
        open_trackers(tmp_path, {}, first_step=1)
