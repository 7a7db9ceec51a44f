"""Decode pictures in separate processes: the limits of each, and the errors beyond them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from ..devices import ByteBudget
from ..errors import DecodersBusyError, DecodersFailedError
from ..images import DEFAULT_MAX_PIXELS, Box, Picture, PictureRule, PictureSource, Size, name_of, naming
from .frames import FrameError, shares_memory
from .process import IDLE_BYTES, Decoded, DecodingLimits, DecodingProcess, Job, OutOfMemory, file_of, refusal
from .workers import Workers, default_decoders

__all__ = ["DecodingLimits", "DecodingPool"]

# A worker killed within this time had not begun: the cause was there before the picture.
_JUST_BEGUN_S = 0.2
# The largest memory of a pixel in any format, with a margin.
_MAX_BYTES_PER_PIXEL = 32
# Left for decoding if the file itself takes nearly all memory.
_MIN_MEMORY = 64_000_000
# Seconds of processor time for the head of a file.
_HEAD_S = 2
# Times a picture may restart because its header needs more memory than granted.
_MAX_BEGINNINGS = 4


class _MoreMemory(Exception):  # noqa: N818 - not an error
    """A picture needs more memory than is free now."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class DecodingPool:
    """Decodes pictures in separate processes; threads may share it.

    A picture that takes longer than a moment continues at low priority, and a new worker takes over
    its place. At most ``slow`` of them are decoded at a time. Beyond that, the others are stopped
    when a request waits for their worker, and restart in turn.

    Args:
        workers: processes that decode; default: the usable cores, at least 2.
        slow: pictures that may continue beside them; 0: each picture keeps its worker until
            decoded.
        limits: of each picture.
        stopped: called for each picture that was not fully decoded, with the reason and its name:
            "memory", "time" (processor time), "late" (wall time), "crash", "killed" (by the system
            or a user), "frames" (the worker's answer was invalid), "evicted" (it restarts).
        forks: fork workers from a fork server; default: on Linux.
        share_memory: pass files and pixels as descriptors; default: where supported.
        limit_memory: let the system limit memory; False: poll it, as on systems that cannot.

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
        self.limits = limits or DecodingLimits()
        self._stopped = stopped
        self._share_memory = shares_memory() if share_memory is None else share_memory
        self._budget = ByteBudget(self.limits.memory)
        self._owner = os.getpid()
        self._workers = Workers(
            workers or default_decoders(),
            slow,
            self.limits,
            forks=forks,
            share_memory=self._share_memory,
            limit_memory=limit_memory,
        )

    @property
    def most_at_a_time(self) -> int:
        """The number of pictures decoded or started and waiting; beyond it, requests must retry."""
        return self._workers.count + self._workers.max_slow + self._workers.max_parked

    def wait_until_ready(self) -> None:
        """Wait for the first worker.

        Raises:
            DecodersFailedError: no worker can be started; the pool is closed.

        """
        failure = self._workers.wait_for_the_first()
        if failure:
            self.close()
            raise DecodersFailedError(f"No process can be started to decode pictures ({failure}).")

    def load_picture(
        self,
        source: PictureSource,
        rule: PictureRule,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        grows: bool = True,
        box: Box | None = None,
    ) -> Picture:
        """Decode one picture, as :func:`~..images.load_picture` does.

        Args:
            source: a path, or a binary file object.
            rule: size and mode of the result.
            max_pixels: pictures with more pixels are refused before decoding.
            grows: a picture whose header needs more memory than the limit gets it, alone; False: it
                is refused.
            box: the part that counts.

        Returns:
            uint8 ``[size, size, 3]``, RGB.

        Raises:
            PictureError: as :func:`~..images.load_picture`; or it takes too much memory or time, or
                its decoder dies.
            DecodersBusyError: too many slow pictures are being decoded.
            DecodersFailedError: there is no worker, and none can be started.

        """
        picture = self._load(source, rule.size, rule, max_pixels, grows, box=box).picture
        assert picture is not None  # a job with a size has one
        return picture

    def load_rendition(
        self, source: PictureSource, limit: int, *, max_pixels: int = DEFAULT_MAX_PIXELS, grows: bool = True
    ) -> tuple[Picture, Size]:
        """Decode a picture for viewing, as :func:`~..images.load_rendition` does.

        See :meth:`load_picture`.
        """
        picture, whole = self._load(source, limit, None, max_pixels, grows)
        assert picture is not None  # as above
        return picture, whole

    def load_size(self, source: PictureSource) -> Size:
        """Read the size of a picture, as :func:`~..images.load_size` does.

        See :meth:`load_picture`.
        """
        return self._load(source, 0, None, DEFAULT_MAX_PIXELS, False, cpu_s=_HEAD_S).whole

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        return self._workers.pids()

    def close(self) -> None:
        """End all workers; pictures being decoded are lost."""
        if os.getpid() == self._owner:
            self._workers.close()

    def __enter__(self) -> DecodingPool:
        """Return the pool."""
        return self

    def __exit__(self, *error: object) -> None:
        """End all workers."""
        self.close()

    def _load(
        self,
        source: PictureSource,
        size: int,
        rule: PictureRule | None,
        max_pixels: int,
        grows: bool,
        *,
        cpu_s: int | None = None,
        box: Box | None = None,
    ) -> Decoded:
        if os.getpid() != self._owner:
            raise DecodersFailedError("The decoding processes belong to the process that this one was forked from.")
        name = name_of(source)
        with contextlib.ExitStack() as stack:
            with naming(name, None):
                file = stack.enter_context(file_of(source, shared=self._share_memory))
                held = 0 if grows else 2 * file.seek(0, os.SEEK_END)  # by the caller, and here
            memory = max(_MIN_MEMORY, self.limits.memory - held)
            cpu_s = self.limits.cpu_s if cpu_s is None else cpu_s
            return self._decode(Job(file, name, size, rule, max_pixels, memory, grows, cpu_s, box))

    def _decode(self, job: Job) -> Decoded:
        """Decode a picture; a wait for memory comes before the wait for a worker."""
        reserved = 0
        for _ in range(_MAX_BEGINNINGS):
            try:
                with self._budget.reserve(reserved) if reserved else contextlib.nullcontext():
                    decoded = self._attempt(job, reserved)
                    if decoded is None:
                        decoded = self._attempt(job, reserved, slow=True)
                    assert decoded is not None  # a picture known to be slow is not evicted
                    return decoded
            except _MoreMemory as more:
                reserved = more.size
        self._stopped("frames", job.name)
        raise refusal(job, "frames", self.limits.memory, self.limits.wall_s)

    def _attempt(self, job: Job, reserved: int, *, slow: bool = False, again: bool = True) -> Decoded | None:
        """Decode a picture.

        Args:
            job: the picture.
            reserved: bytes of memory reserved for it.
            slow: it is known to take long.
            again: whether to retry if its worker was killed before it had begun.

        Returns:
            its pixels; None: it was stopped to let others pass.

        Raises:
            _MoreMemory: it needs more than is free.

        """
        worker = self._workers.take(slow=slow)
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
            self._workers.give_back(worker)
        if again and reason == "killed" and time.monotonic() - worker.begun < _JUST_BEGUN_S:
            return self._attempt(job, reserved, slow=slow, again=False)
        self._stopped(reason, job.name)
        if reason == "evicted":
            return None
        if reason == "closed":
            raise DecodersBusyError("The decoding processes have ended; try again in a moment.")
        raise refusal(job, reason, self.limits.memory, self.limits.wall_s)

    def _grant(self, granted: contextlib.ExitStack, worker: DecodingProcess, job: Job, size: int, reserved: int) -> int:
        """Return the memory limit of a picture that needs ``size`` bytes, according to its header.

        Raises:
            _MoreMemory: they are neither reserved nor free.

        """
        granted.close()  # a second request, after the first way of decoding failed
        size = min(size, _MAX_BYTES_PER_PIXEL * job.max_pixels)
        if size > reserved:
            try:
                granted.enter_context(self._budget.reserve(size, timeout=0))
            except TimeoutError:
                raise _MoreMemory(size) from None
        limit = max(self.limits.memory, size + size // 4)
        worker.max_resident = IDLE_BYTES + limit
        return limit
