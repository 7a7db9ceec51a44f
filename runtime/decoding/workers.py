"""The decoding processes: started, assigned, watched, killed and replaced.

``ProcessPoolExecutor`` breaks as a whole when a worker dies, and ``multiprocessing`` runs the
user's ``__main__`` again in each process. Here a worker receives the file's descriptor, and its
death costs only its own picture.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque

from ..devices import usable_cores
from ..errors import DecodersBusyError, DecodersFailedError
from .frames import Channel, FrameError
from .launcher import ForkServer, Interpreter, Process
from .process import IDLE_BYTES, DecodingLimits, DecodingProcess, resident_bytes

__all__ = ["Workers", "default_decoders"]

_START_S = 60.0
_RESTART_PAUSE_S = 1.0
_MAX_FAILURES = 3
_TICK_S = 0.05
# Interval of checks that workers live, while nothing is decoded.
_PAUSE_S = 1.0
# Seconds before a picture's memory is polled, where the system does not limit it.
_LOOK_S = 0.2
# Time limit for a slow picture's turn.
_PATIENCE_S = 30.0


def default_decoders() -> int:
    """Return the default number of workers: the usable cores, at least 2 to overlap pictures."""
    return max(2, usable_cores())


class Workers:
    """The processes of a pool; threads may share them.

    Args:
        count: processes that decode.
        slow: slow ones that may continue beside them.
        limits: of each picture.
        forks, share_memory, limit_memory: see :class:`~.pool.DecodingPool`.

    """

    def __init__(
        self,
        count: int,
        slow: int,
        limits: DecodingLimits,
        *,
        forks: bool | None,
        share_memory: bool,
        limit_memory: bool,
    ) -> None:
        self.count = count
        self.max_slow = slow
        self.max_parked = 4 * slow
        self._limits = limits
        self._share_memory = share_memory
        self._limit_memory = limit_memory
        self._forks = sys.platform == "linux" if forks is None else forks
        self._forking: ForkServer | None = None
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._starting: set[DecodingProcess] = set()
        self._idle: list[DecodingProcess] = []
        self._running: set[DecodingProcess] = set()
        self._queue: deque[object] = deque()
        self._parked: deque[object] = deque()
        self._failures = 0
        self._failed_at = -_RESTART_PAUSE_S
        self._failure = ""
        self._closed = self._ticks = False
        # Workers die with the thread that started them, so that thread must live as long.
        self._supervisor = threading.Thread(target=self._supervise, name="decoders", daemon=True)
        self._supervisor.start()

    def wait_for_the_first(self) -> str:
        """Wait until a worker is ready; return "", or why none can be started."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle or self._running or self._failure)
            return "" if self._idle or self._running else self._failure

    def pids(self) -> list[int]:
        """Return their process ids."""
        with self._changed:
            return [worker.pid for worker in self._all()]

    def close(self) -> None:
        """End all of them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._wake.set()
        # garbage collection may run this in any thread
        if threading.current_thread() is not self._supervisor:
            self._supervisor.join()

    def take(self, *, slow: bool) -> DecodingProcess:
        """Wait for a worker, first come, first served.

        Args:
            slow: for a picture known to be slow; it waits in the queue of slow ones.

        Raises:
            DecodersBusyError: too many slow pictures wait.
            DecodersFailedError: there is no worker, and none can be started.

        """
        ticket = object()
        queue = self._parked if slow else self._queue
        with self._changed:
            if slow and len(queue) >= self.max_parked:
                raise DecodersBusyError("Too many slow pictures are being decoded; try again in a moment.")
            queue.append(ticket)
            try:
                self._changed.wait_for(lambda: self._is_over() or self._is_turn(ticket), _PATIENCE_S if slow else None)
                if self._is_over():
                    raise DecodersFailedError(
                        f"No process is left to decode pictures ({self._failure or 'they have ended'})."
                    )
                if not self._is_turn(ticket):
                    raise DecodersBusyError("Many slow pictures are being decoded; try again in a moment.")
            finally:
                queue.remove(ticket)
                self._changed.notify_all()
            worker = self._idle.pop()
            self._running.add(worker)
            worker.begin(self._limits.wall_s)
            worker.max_resident = IDLE_BYTES + self._limits.memory
            if slow:
                worker.lower_priority()
            if slow or not self._ticks:
                self._wake.set()
        return worker

    def _is_turn(self, ticket: object) -> bool:
        """Tell whether the next idle worker is for this ticket: slow pictures first, if allowed."""
        while self._idle and not self._idle[-1].lives():
            self._idle.pop().end()
        if not self._idle:
            return False
        may_be_slow = bool(self._parked) and self._slow() < self.max_slow
        return (self._parked if may_be_slow else self._queue or [None])[0] is ticket

    def _is_over(self) -> bool:
        return self._closed or (self._failures >= _MAX_FAILURES and not self._idle and not self._running)

    def _slow(self) -> int:
        return sum(worker.slow for worker in self._running)

    def _lacks(self) -> int:
        fast = len(self._idle) + len(self._starting) + len(self._running) - self._slow()
        return self.count - fast

    def _all(self) -> list[DecodingProcess]:
        return [*self._idle, *self._running, *self._starting]

    def give_back(self, worker: DecodingProcess) -> None:
        """Return a worker to the pool, unless it ends."""
        with self._changed:
            self._running.discard(worker)
            reusable = worker.is_reusable and not self._closed
            if reusable:
                self._idle.append(worker)
            self._changed.notify_all()
        if not reusable:
            worker.kill("retired")
            worker.end()
            self._wake.set()

    def _supervise(self) -> None:
        """Start workers and watch over them until the pool is closed."""
        while not self._closed:
            self._start_workers()
            with self._changed:
                self._watch()
                watched = [(worker, worker.begun) for worker in self._running if not worker.limits_memory]
                self._ticks = bool(self._running or self._starting or self._lacks() > 0)
            self._look_at_memory(watched)
            self._wake.wait(_TICK_S if self._ticks else _PAUSE_S)
            self._wake.clear()
        with self._changed:
            workers = self._all()
            self._idle.clear()
        for worker in workers:
            worker.kill("closed")
        for worker in workers:
            worker.end()
        if self._forking is not None:
            self._forking.close()

    def _start_workers(self) -> None:
        while self._may_start():
            try:
                self._start_worker()
            except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
                self._fail(str(error))

    def _may_start(self) -> bool:
        with self._changed:
            rested = time.monotonic() - self._failed_at >= _RESTART_PAUSE_S
            return not self._closed and self._lacks() > 0 and rested

    def _start_worker(self) -> None:
        """Start a worker.

        Raises:
            OSError, RuntimeError: it cannot be started.

        """
        process, channel, interpreter = self._launch()
        worker = DecodingProcess(process, channel, shares_memory=self._share_memory)
        worker.begin(_START_S)
        with self._changed:
            self._starting.add(worker)
        try:
            threading.Thread(target=self._welcome, args=(worker, interpreter), name="decoder", daemon=True).start()
        except RuntimeError:
            with self._changed:
                self._starting.discard(worker)
            worker.kill("closed")
            worker.end()
            raise

    def _launch(self) -> tuple[Process, Channel, Interpreter | None]:
        words = ["shared" if self._share_memory else "copied", "limited" if self._limit_memory else "watched"]
        if not self._forks:
            interpreter = Interpreter("decodes", *words)
            return interpreter.process, interpreter.channel, interpreter
        if self._forking is not None and self._forking.is_over:
            self._forking.close()
            self._forking = None
        if self._forking is None:
            self._forking = ForkServer(*words)
        return *self._forking.fork(), None

    def _welcome(self, worker: DecodingProcess, interpreter: Interpreter | None) -> None:
        """Wait until a worker is ready."""
        failure = None
        try:
            worker.wait_until_ready()
        except (EOFError, OSError, FrameError):
            failure = "it ended" if interpreter is None else interpreter.last_words()
            worker.end()
        else:
            if interpreter is not None:
                interpreter.settle()
        with self._changed:
            self._starting.discard(worker)
            closed = self._closed
            if failure is None and not closed:
                self._failures, self._failure = 0, ""
                self._idle.append(worker)
            self._changed.notify_all()
        if failure is not None:
            self._fail(failure)
        elif closed:
            worker.kill("closed")
            worker.end()
        self._wake.set()

    def _fail(self, why: str) -> None:
        with self._changed:
            self._failures += 1
            self._failed_at = time.monotonic()
            self._failure = why
            self._changed.notify_all()

    def _watch(self) -> None:
        """Kill workers beyond their limits, and let slow ones delay no others."""
        now = time.monotonic()
        for worker in [worker for worker in self._idle if not worker.lives()]:  # killed by others
            self._idle.remove(worker)
            worker.end()
        for worker in self._starting | self._running:
            if now > worker.deadline:
                worker.kill("late")
        for worker in sorted(self._running, key=lambda worker: worker.begun):
            if not self.max_slow or worker.slow or now - worker.begun < self._limits.quantum_s:
                continue
            if self._slow() < self.max_slow:
                worker.lower_priority()
            elif self._queue and not self._idle:
                worker.kill("evicted")

    def _look_at_memory(self, watched: list[tuple[DecodingProcess, float]]) -> None:
        """Kill workers with too much memory, where the system enforces no limit."""
        for worker, begun in watched:
            if time.monotonic() - begun < _LOOK_S or resident_bytes(worker.pid) <= worker.max_resident:
                continue
            with self._changed:
                if worker in self._running and worker.begun == begun:
                    worker.kill("memory")
