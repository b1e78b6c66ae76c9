"""The target's end of the drafter's process: start it, tell it outcomes, notice when it dies or hangs."""

import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection

from forerun.core.errors import DrafterError
from forerun.engine.speculative.messages import Message, encode
from forerun.engine.speculative.speculation_cache import SpeculationCache
from forerun.engine.speculative.worker import WorkerConfig

_SEND_TIMEOUT_S = 1


class DrafterProcess:
    """A running drafter.

    The process is a child without a shell; it ends when its connection closes, so also when this process is killed.

    Args:
        config: What it runs.

    Effects:
        Starts the process; :meth:`wait_until_ready` waits for its models.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        folder = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108 (unlinked at once, memory-backed)
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(config.shape.num_bytes)
            self._memory = mmap.mmap(file.fileno(), config.shape.num_bytes)
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "forerun.engine.speculative.worker",
                    str(theirs.fileno()), str(file.fileno()), config.to_json(),
                ],
                pass_fds=(theirs.fileno(), file.fileno()),
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        theirs.close()
        self._connection = Connection(ours.detach())
        self.cache = SpeculationCache(memoryview(self._memory), config.shape)
        self._last_beat = (-1, time.perf_counter())

    @property
    def pid(self) -> int:
        """Process id of the drafter."""
        return self._process.pid

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the drafter has loaded its model.

        Raises:
            DrafterError: It failed to start, or took too long.
        """
        try:
            if not self._connection.poll(timeout_s):
                raise DrafterError(
                    f"the drafter was not ready after {timeout_s:.0f} s; raise drafter_timeout_s or use a smaller draft"
                )
            answer = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise DrafterError(f"the drafter ended while it was loading (exit code {self._process.wait()})") from error
        if "error" in answer:
            raise DrafterError(answer["error"])

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            DrafterError: The drafter is gone, or has stopped reading.
        """
        try:
            self._connection.send_bytes(encode(message))
        except (OSError, ValueError) as error:
            raise DrafterError(f"the drafter takes no more messages ({error})") from error

    def check_alive(self, timeout_s: float) -> None:
        """Notice a dead or hung drafter; call it while the drafter has work.

        Raises:
            DrafterError: The process has ended, or has made no progress for ``timeout_s``.
        """
        code = self._process.poll()
        if code is not None:
            raise DrafterError(f"the drafter's process ended (exit code {code})")
        beat, now = self.cache.heartbeat, time.perf_counter()
        if beat != self._last_beat[0]:
            self._last_beat = (beat, now)
        elif now - self._last_beat[1] > timeout_s:
            raise DrafterError(f"the drafter has made no progress for {timeout_s:.1f} s")

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
