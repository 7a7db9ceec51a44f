"""The processes that decode: started, given pictures, watched, killed and replaced.

``ProcessPoolExecutor`` breaks as a whole when a worker dies, and ``multiprocessing`` runs the user's ``__main__`` again
in each process. Here a worker is an interpreter of its own, which is handed the file's descriptor; one that dies takes
its own picture with it and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..devices import usable_cores
from ..errors import DecodersBusyError, DecodersFailedError
from ..images import DEFAULT_MAX_PIXELS, Picture, PictureRule, PictureSource, name_of, naming
from ..memory import ByteBudget
from .frames import FrameError, shares_memory
from .launching import ForkServer, Interpreter
from .process import DecodingProcess, Job, OutOfMemory, file_of, refusal, resident_bytes

__all__ = ["DecodingLimits", "DecodingPool", "default_decoders"]

_START_S = 60.0
_RESTART_PAUSE_S = 1.0
_MAX_FAILURES = 3
_TICK_S = 0.05
# A worker that was killed within this time had not begun: what ends it was there before the picture.
_JUST_BEGUN_S = 0.2
# How often it is looked whether workers live while nothing is decoded.
_PAUSE_S = 1.0
# The age of a picture from which on memory is looked at, where the system does not limit it.
_LOOK_S = 0.2
# About what a worker takes while it does nothing.
_IDLE_BYTES = 80_000_000
# How long a slow picture waits for its turn.
_PATIENCE_S = 30.0
# The most that a pixel takes in any format, with some to spare.
_MAX_BYTES_PER_PIXEL = 32
# What is left for decoding where the file itself takes nearly all.
_MIN_MEMORY = 64_000_000
# How often a picture begins again because its header says that it takes more memory than it was given.
_MAX_BEGINNINGS = 4


def default_decoders() -> int:
    """Return how many processes decode: the usable cores, and at least 2, so that one does not wait for another."""
    return max(2, usable_cores())


class _MoreMemory(Exception):  # noqa: N818 - not an error
    """A picture takes so many bytes, which are not free now."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


@dataclass(frozen=True)
class DecodingLimits:
    """What one picture may take.

    Attributes:
        memory: bytes, above those of a worker that does nothing; the file counts as well.
        cpu_s: seconds of the processor.
        wall_s: seconds by the clock.
        quantum_s: seconds after which a picture counts as slow.

    """

    memory: int = 512_000_000
    cpu_s: int = 20
    wall_s: float = 60.0
    quantum_s: float = 0.5


class DecodingPool:
    """Decodes pictures in processes of their own; threads may share it.

    A picture that takes longer than a moment goes on at low priority, and another worker takes the place of its own. Of
    those, ``slow`` are decoded at a time; where there are more, the others are stopped when somebody waits for their
    worker, and begin again when it is their turn.

    Args:
        workers: processes that decode; default: the usable cores, at least 2.
        slow: pictures that may go on beside them; 0: each picture keeps its worker until it is decoded.
        limits: of each picture.
        stopped: told each time that a picture was not decoded to its end, why, and the name of the picture: "memory",
            "time" (of the processor), "late" (by the clock), "crash", "killed" (by the system, or somebody), "frames"
            (the worker answered nonsense), "evicted" (it begins again).
        forks: have the workers forked by a process that does nothing else; default: on Linux.
        share_memory: hand files and pixels over as descriptors; default: where the system can.
        limit_memory: have the system limit memory; False: look at it, as where it cannot.

    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        slow: int = 0,
        limits: DecodingLimits | None = None,
        stopped: Callable[[str, str], None] = lambda reason, name: None,
        forks: bool | None = None,
        share_memory: bool | None = None,
        limit_memory: bool = True,
    ) -> None:
        self.workers = workers or default_decoders()
        self.max_slow = slow
        self.max_parked = 4 * slow
        self.limits = limits or DecodingLimits()
        self._stopped = stopped
        self._share_memory = shares_memory() if share_memory is None else share_memory
        self._limit_memory = limit_memory
        self._forks = sys.platform == "linux" if forks is None else forks
        self._forking: ForkServer | None = None
        self._budget = ByteBudget(self.limits.memory)
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
        self._owner = os.getpid()
        # Workers die with the thread that started them: so it is one that lives as long as they may.
        self._supervisor = threading.Thread(target=self._supervise, name="decoders", daemon=True)
        self._supervisor.start()

    def wait_until_ready(self) -> None:
        """Wait for the first worker.

        Raises:
            DecodersFailedError: none can be started; the pool is closed.

        """
        with self._changed:
            self._changed.wait_for(lambda: self._idle or self._running or self._failure)
            failure = "" if self._idle or self._running else self._failure
        if failure:
            self.close()
            raise DecodersFailedError(f"No process can be started to decode pictures ({failure}).")

    def load_picture(
        self, source: PictureSource, rule: PictureRule, *, max_pixels: int = DEFAULT_MAX_PIXELS, grows: bool = True
    ) -> Picture:
        """Decode one picture, as :func:`~..images.load_picture` does.

        Args:
            source: a path, or a binary file object.
            rule: size and mode of the result.
            max_pixels: pictures of more than this many pixels are refused before they are decoded.
            grows: one whose header says that it takes more memory than the limit gets it, alone; False: it is refused.

        Returns:
            uint8 ``[size, size, 3]``, RGB.

        Raises:
            PictureError: as :func:`~..images.load_picture`; or it takes too much memory or time, or its decoder dies.
            DecodersBusyError: too many pictures are being decoded that take long.
            DecodersFailedError: there is no worker, and none can be started.

        """
        return self._load(source, rule.size, rule, max_pixels, grows)

    def load_thumbnail(
        self, source: PictureSource, most: int, *, max_pixels: int = DEFAULT_MAX_PIXELS, grows: bool = True
    ) -> Picture:
        """Decode a picture to be looked at, as :func:`~..images.load_thumbnail` does; see :meth:`load_picture`."""
        return self._load(source, most, None, max_pixels, grows)

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        with self._changed:
            return [worker.pid for worker in self._all()]

    def close(self) -> None:
        """End all workers; pictures that are being decoded are not."""
        if os.getpid() != self._owner:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._wake.set()
        if threading.current_thread() is not self._supervisor:  # where the last owner is collected, any thread may be
            self._supervisor.join()

    def __enter__(self) -> DecodingPool:
        """Return the pool."""
        return self

    def __exit__(self, *error: object) -> None:
        """End all workers."""
        self.close()

    def _load(
        self, source: PictureSource, size: int, rule: PictureRule | None, max_pixels: int, grows: bool
    ) -> Picture:
        if os.getpid() != self._owner:
            raise DecodersFailedError("The decoding processes belong to the process that this one was forked from.")
        name = name_of(source)
        with contextlib.ExitStack() as stack:
            with naming(name, None):
                file = stack.enter_context(file_of(source, shared=self._share_memory))
                held = 0 if grows else 2 * file.seek(0, os.SEEK_END)  # by whoever gave it to us, and here
            memory = max(_MIN_MEMORY, self.limits.memory - held)
            return self._decode(Job(file, name, size, rule, max_pixels, memory, grows, self.limits.cpu_s))

    def _decode(self, job: Job) -> Picture:
        """Decode a picture; where it has to wait for memory, it does so before it takes a worker."""
        reserved = 0
        for _ in range(_MAX_BEGINNINGS):
            try:
                with self._budget.reserve(reserved) if reserved else contextlib.nullcontext():
                    picture = self._attempt(job, self._queue, reserved)
                    if picture is None:
                        picture = self._attempt(job, self._parked, reserved)
                    assert picture is not None  # what is slow from the beginning is not stopped for others
                    return picture
            except _MoreMemory as more:
                reserved = more.size
        self._stopped("frames", job.name)
        raise refusal(job, "frames", self.limits.memory, self.limits.wall_s)

    def _attempt(self, job: Job, queue: deque[object], reserved: int, *, again: bool = True) -> Picture | None:
        """Decode a picture.

        Args:
            job: the picture.
            queue: where it waits for its worker.
            reserved: bytes of memory that are its own.
            again: whether it begins again where its worker was killed before it had begun.

        Returns:
            its pixels; None: it was stopped to let others pass.

        Raises:
            _MoreMemory: it takes more, which is not free.

        """
        worker = self._take(queue)
        reason = "memory"
        try:
            with contextlib.ExitStack() as granted:
                return worker.decode(job, lambda size: self._grant(granted, worker, job, size, reserved))
        except OutOfMemory:
            pass
        except FrameError:
            worker.kill("frames")
            reason = worker.end()
        except (EOFError, OSError):
            reason = worker.end()
        finally:
            self._give_back(worker)
        if again and reason == "killed" and time.monotonic() - worker.begun < _JUST_BEGUN_S:
            return self._attempt(job, queue, reserved, again=False)
        self._stopped(reason, job.name)
        if reason == "evicted":
            return None
        if reason == "closed":
            raise DecodersBusyError("The decoding processes have ended; try again in a moment.")
        raise refusal(job, reason, self.limits.memory, self.limits.wall_s)

    def _grant(self, granted: contextlib.ExitStack, worker: DecodingProcess, job: Job, size: int, reserved: int) -> int:
        """Return the limit of a picture that takes so many bytes, as its header says.

        Raises:
            _MoreMemory: they are neither reserved nor free.

        """
        granted.close()  # it asks a second time where its first way failed
        size = min(size, _MAX_BYTES_PER_PIXEL * job.max_pixels)
        if size > reserved:
            try:
                granted.enter_context(self._budget.reserve(size, timeout=0))
            except TimeoutError:
                raise _MoreMemory(size) from None
        limit = max(self.limits.memory, size + size // 4)
        worker.max_resident = _IDLE_BYTES + limit
        return limit

    def _take(self, queue: deque[object]) -> DecodingProcess:
        """Wait for a worker, first come, first served."""
        ticket = object()
        slow = queue is self._parked
        with self._changed:
            if slow and len(queue) >= self.max_parked:
                raise DecodersBusyError("Too many pictures that take long are being decoded; try again in a moment.")
            queue.append(ticket)
            try:
                self._changed.wait_for(lambda: self._is_over() or self._is_turn(ticket), _PATIENCE_S if slow else None)
                if self._is_over():
                    raise DecodersFailedError(
                        f"There is no process to decode pictures ({self._failure or 'they have ended'})."
                    )
                if not self._is_turn(ticket):
                    raise DecodersBusyError("Many pictures that take long are being decoded; try again in a moment.")
            finally:
                queue.remove(ticket)
                self._changed.notify_all()
            worker = self._idle.pop()
            self._running.add(worker)
            worker.begin(self.limits.wall_s)
            worker.max_resident = _IDLE_BYTES + self.limits.memory
            if slow:
                worker.lower_priority()
            if slow or not self._ticks:
                self._wake.set()
        return worker

    def _is_turn(self, ticket: object) -> bool:
        """Tell whether the next idle worker is for this one: those that wait to be slow go first, if they may."""
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
        return self.workers - fast

    def _all(self) -> list[DecodingProcess]:
        return [*self._idle, *self._running, *self._starting]

    def _give_back(self, worker: DecodingProcess) -> None:
        """Let the next one have a worker, unless it is one that ends."""
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
        words = ["shared" if self._share_memory else "copied", "limited" if self._limit_memory else "watched"]
        interpreter = None
        if self._forks:
            if self._forking is not None and self._forking.is_over:
                self._forking.close()
                self._forking = None
            if self._forking is None:
                self._forking = ForkServer(*words)
            process, channel = self._forking.fork()
        else:
            interpreter = Interpreter("decodes", *words)
            process, channel = interpreter.process, interpreter.channel
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
        """Kill workers that take too long, and let slow ones hold up nobody."""
        now = time.monotonic()
        for worker in [worker for worker in self._idle if not worker.lives()]:  # killed from outside
            self._idle.remove(worker)
            worker.end()
        for worker in self._starting | self._running:
            if now > worker.deadline:
                worker.kill("late")
        for worker in sorted(self._running, key=lambda worker: worker.begun):
            if not self.max_slow or worker.slow or now - worker.begun < self.limits.quantum_s:
                continue
            if self._slow() < self.max_slow:
                worker.lower_priority()
            elif self._queue and not self._idle:
                worker.kill("evicted")

    def _look_at_memory(self, watched: list[tuple[DecodingProcess, float]]) -> None:
        """Kill workers that take too much where the system does not hold them to a limit."""
        for worker, begun in watched:
            if time.monotonic() - begun < _LOOK_S or resident_bytes(worker.pid) <= worker.max_resident:
                continue
            with self._changed:
                if worker in self._running and worker.begun == begun:
                    worker.kill("memory")
