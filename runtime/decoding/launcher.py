"""The launcher of decoding workers: forked from a server, or an interpreter each.

Starting an interpreter with decoders takes a quarter of a second of processor time, during which
its place serves no request. So on Linux one such process never decodes: it has no threads, and
forks workers in a few milliseconds. The parent itself, with its threads and databases, is never
forked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from typing import Protocol

from ..text import printable
from .frames import Channel

__all__ = ["EXITED", "STARTED", "ForkServer", "Interpreter", "Process"]

_PROGRAM = "from deeprank.runtime.decoding.worker import main; main()"
# Environment variables that the interpreter and its libraries need; tokens and keys stay here.
_ENVIRONMENT = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "ASAN_OPTIONS"),
    *("PYTHONHOME", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE", "PYTHONMALLOC", "SYSTEMROOT", "TEMP", "TMPDIR"),
)
# Memory reserved by threads and allocators would count against the address-space limit. Large
# blocks are returned at once; see ``runtime/devices.py``. Memory for an ordinary picture is kept:
# requesting its pages again took a quarter of the decoding time.
_SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 20),
}
# A process id, and its exit code as from ``os.waitstatus_to_exitcode``, or the mark of its start.
EXITED = struct.Struct("!ii")
STARTED = 1 << 16
_START_S, _FORK_S = 60.0, 10.0
_MAX_TEXT_CHARACTERS = 2000


class Process(Protocol):
    """The part of ``subprocess.Popen`` in use here."""

    @property
    def pid(self) -> int:
        """The process id."""

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status."""

    def kill(self) -> None:
        """Kill it."""


class Interpreter:
    """A worker, or the fork server, as a new interpreter.

    Attributes:
        channel: the connection: a socket, or pipes on systems without such sockets.

    """

    def __init__(self, *words: str) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.

        """
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        path = os.pathsep.join(os.path.abspath(each) for each in sys.path if each)  # noqa: PTH100 - text
        environment = {**environment, "PYTHONPATH": path, **_SETTINGS}
        # -P: no imports from the working directory. A new session: Ctrl-C is for this process.
        command = [sys.executable, "-P", "-c", _PROGRAM, *words, str(os.getpid())]
        if not hasattr(socket, "AF_UNIX"):
            self.process = _popen(command, environment, subprocess.PIPE, subprocess.PIPE)
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.channel = Channel(os.dup(self.process.stdout.fileno()), os.dup(self.process.stdin.fileno()))
            return
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.process = _popen(command, environment, theirs.fileno(), subprocess.DEVNULL)
            descriptor = ours.detach()
            self.channel = Channel(descriptor, descriptor)

    def settle(self) -> None:
        """Stop listening to its stderr: it is ready."""
        assert self.process.stderr is not None
        self.process.stderr.close()

    def last_words(self) -> str:
        """Return why it ended before it was ready."""
        self.process.kill()
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            lines = stream.read().decode("utf-8", "replace").strip().splitlines()
        status = self.process.wait()
        return printable(lines[-1][:_MAX_TEXT_CHARACTERS]) if lines else f"exit status {status}"


def _popen(command: list[str], environment: dict[str, str], stdin: int, stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        bufsize=0,
    )


class ForkServer:
    """A process that imports the decoders and forks workers; for use from one thread."""

    def __init__(self, *words: str) -> None:
        """Start it, and wait until it is ready.

        Raises:
            OSError, RuntimeError: it cannot be started; the message says why.

        """
        self._interpreter = Interpreter("forks", *words)
        self._changed = threading.Condition()
        self._started: deque[int] = deque()
        self._statuses: dict[int, int] = {}
        self._alive: set[int] = set()
        self.is_over = False
        try:
            self._interpreter.channel.wait(_START_S)
            self._interpreter.channel.read(1)
        except (EOFError, OSError):
            why = self._interpreter.last_words()
            self._interpreter.channel.close()
            raise OSError(why) from None
        self._interpreter.settle()
        self._listener = threading.Thread(target=self._listen, name="decoders-forks", daemon=True)
        try:
            self._listener.start()
        except RuntimeError:
            self._interpreter.process.kill()
            self._interpreter.process.wait()
            self._interpreter.channel.close()
            raise

    def fork(self) -> tuple[Process, Channel]:
        """Start a worker.

        Raises:
            OSError: it cannot be started.

        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._interpreter.channel.send({}, [theirs.fileno()])
            with self._changed:
                self._changed.wait_for(lambda: self._started or self.is_over, _FORK_S)
                started = bool(self._started)
                pid = self._started.popleft() if started else 0
            if not started:
                # A late message could pass for the answer to another request.
                self._interpreter.process.kill()
                raise OSError("the process that forks the others does not answer")
            if pid <= 0:
                raise OSError("the system starts no more processes")
            descriptor = ours.detach()
            return Forked(pid, self), Channel(descriptor, descriptor)

    def status(self, pid: int, timeout: float | None) -> int | None:
        """Return a worker's exit status; None if it still runs after ``timeout``."""
        with self._changed:
            self._changed.wait_for(lambda: pid not in self._alive, timeout)
            return None if pid in self._alive else self._statuses.get(pid, -9)

    def forget(self, pid: int) -> None:
        """Forget a worker's exit status."""
        with self._changed:
            self._statuses.pop(pid, None)

    def close(self) -> None:
        """End it, together with all workers."""
        self._interpreter.process.kill()
        self._interpreter.process.wait()
        self._listener.join()
        self._interpreter.channel.close()

    def _listen(self) -> None:
        """Receive exit statuses of workers until it ends; the workers die with it."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                pid, status = EXITED.unpack(self._interpreter.channel.read(EXITED.size))
                with self._changed:
                    if status == STARTED:
                        self._started.append(pid)
                        self._alive.add(pid)
                    else:
                        self._alive.discard(pid)
                        self._statuses[pid] = status
                    self._changed.notify_all()
        with self._changed:
            self.is_over = True
            self._alive.clear()
            self._changed.notify_all()


class Forked:
    """A forked worker."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self._server = server
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        if self._status is None:
            self._status = self._server.status(self.pid, 0)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status.

        Raises:
            TimeoutExpired: it still runs after ``timeout``.

        """
        if self._status is None:
            self._status = self._server.status(self.pid, timeout)
        if self._status is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0)
        self._server.forget(self.pid)
        return self._status

    def kill(self) -> None:
        """Kill it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
