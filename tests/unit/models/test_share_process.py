"""How a command whose model is shared by processes ends: by Ctrl-C, or asked to, with all of its processes."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from simulated.byte_model import save_byte_model

PATIENCE_S = 60

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_command_that_is_stopped_ends_with_all_its_processes(sent, status, tmp_path):
    model, scratch = tmp_path / "model", tmp_path / "scratch"
    scratch.mkdir()
    save_byte_model(model, max_len=20_000)  # so long that it is still at it
    options = ["--method", "none", "--dtype", "float32", "--tensor-parallel", "2", "--raw", "--ignore-eos"]
    command = [Path(sys.executable).with_name("forerun"), "generate", "The sea", "--target", str(model), *options]
    leader = subprocess.Popen(
        [*command, "--max-model-len", "20000", "--max-tokens", "19000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch)},
    )
    try:
        assert leader.stdout is not None
        assert leader.stdout.read(3), leader.communicate()[1].decode()  # it decodes
        (follower,) = children(leader.pid)
        end_of_follower = os.pidfd_open(follower)
        leader.send_signal(sent)
        _, error = leader.communicate(timeout=PATIENCE_S)
        assert leader.returncode == status
        assert error == b""
        assert select.select([end_of_follower], [], [], PATIENCE_S)[0], "the other process is still there"
        os.close(end_of_follower)
        assert list(scratch.iterdir()) == []
    finally:
        leader.kill()
        leader.wait()
