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
from typing import IO

from forerun.core import errors
from forerun.core.errors import DrafterError
from forerun.engine.speculative.messages import Message, encode
from forerun.engine.speculative.speculation_cache import SpeculationCache
from forerun.engine.speculative.target_states import StateBuffer
from forerun.engine.speculative.worker import WorkerConfig

_SEND_TIMEOUT_S = 1
_MIN_CHECKS = 4
"""Checks that must see a silent drafter before it counts as hung, however long this process itself was away."""


class DrafterProcess:
    """A running drafter.

    The process is a child without a shell, in a session of its own so that Ctrl-C in a terminal is ours to handle. It
    ends when its connection closes, so also when this process is killed.

    Args:
        config: What it runs.

    Effects:
        Starts the process; :meth:`wait_until_ready` waits for its models.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.vocab_size = config.vocab_size
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
        with _memory_file(config.num_bytes) as file:
            self._memory = mmap.mmap(file.fileno(), config.num_bytes)
            self._process = subprocess.Popen(
                [
                    sys.executable, "-P", "-m", "forerun.engine.speculative.worker",
                    str(theirs.fileno()), str(file.fileno()), config.to_json(),
                ],
                pass_fds=(theirs.fileno(), file.fileno()),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        theirs.close()
        self._connection = Connection(ours.detach())
        self.cache: SpeculationCache
        self.states: StateBuffer
        self.cache, self.states = config.views(memoryview(self._memory))
        self._last_beat: int = -1
        self._last_check_s = time.perf_counter()
        self._silent_s = 0.0

    @property
    def pid(self) -> int:
        """Process id of the drafter."""
        return self._process.pid

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the drafter has loaded its model.

        Raises:
            DrafterError: It ended while it was loading, or took too long.
            ForerunError: What the drafter found wrong with its configuration or its model.
        """
        try:
            if not self._connection.poll(timeout_s):
                raise DrafterError(f"the drafter had not loaded its model after {timeout_s:.0f} s")
        except OSError as error:
            raise DrafterError(f"the drafter ended while it was loading ({error})") from error
        self._read_answer()

    def is_ready(self) -> bool:
        """As :meth:`forerun.engine.speculative.drafter_restart.StartingDrafter.is_ready`."""
        if not self._connection.poll(0):
            return False
        self._read_answer()
        return True

    def _read_answer(self) -> None:
        """Read how loading went, and raise what went wrong."""
        try:
            answer = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise DrafterError(f"the drafter ended while it was loading (exit code {self._process.wait()})") from error
        if "error" in answer:
            raise getattr(errors, answer["kind"])(answer["error"])

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
        # A drafter without work is silent, and nobody checks between requests: such a gap counts for one check only.
        self._silent_s += min(now - self._last_check_s, timeout_s / _MIN_CHECKS)
        self._last_check_s = now
        if beat != self._last_beat:
            self._last_beat, self._silent_s = beat, 0.0
        elif self._silent_s > timeout_s:
            raise DrafterError(f"the drafter has made no progress for {timeout_s:.1f} s")

    def close(self) -> None:
        """End the process. May be called again."""
        self._connection.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _memory_file(num_bytes: int) -> IO[bytes]:
    """Return an unnamed file to share. Not of /dev/shm, which may be small: a page it lacks would be a bus error."""
    has_memory_files = hasattr(os, "memfd_create")
    file = os.fdopen(os.memfd_create("forerun"), "w+b") if has_memory_files else tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(num_bytes)
    return file
