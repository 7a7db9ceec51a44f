"""One decoding process as seen by its parent: start, decode, kill, exit reason.

Its answers are not trusted: a file may have taken it over.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast, get_args

import numpy as np

from ..errors import PictureError, PictureProblem
from ..images import Box, Picture, PictureRule, PictureSource, Size
from ..text import printable
from .frames import Answer, Channel, Code, FrameError
from .launcher import Process

__all__ = [
    "IDLE_BYTES",
    "Decoded",
    "DecodingLimits",
    "DecodingProcess",
    "Job",
    "OutOfMemory",
    "file_of",
    "refusal",
    "resident_bytes",
]

# Approximate memory of an idle worker.
IDLE_BYTES = 80_000_000

_LOW_PRIORITY = 10
_MAX_TEXT_CHARACTERS = 2000
# Memory requests allowed per picture.
_MAX_NEEDS = 4
# A process whose connection is closed ends within this time, or is killed.
_END_S = 1.0


@dataclass(frozen=True)
class DecodingLimits:
    """The limits for one picture.

    Attributes:
        memory: bytes above an idle worker's; the file counts too.
        cpu_s: seconds of processor time.
        wall_s: seconds of wall time.
        quantum_s: seconds after which a picture counts as slow.

    """

    memory: int = 512_000_000
    cpu_s: int = 20
    wall_s: float = 60.0
    quantum_s: float = 0.5


class OutOfMemory(Exception):  # noqa: N818 - a refusal to be put into words
    """Decoding exceeded its memory limit."""


class Decoded(NamedTuple):
    """A decoded picture, uint8 ``[height, width, 3]``, RGB, and the size of the upright one in the file.

    Attributes:
        picture: None if only the size was to be read.
        whole: (0, 0) if a rule made the picture.

    """

    picture: Picture | None
    whole: Size


@dataclass(frozen=True)
class Job:
    """A picture to decode.

    Attributes:
        file: positioned at its start.
        name: of the file, for messages.
        size: pixels of each side, or of the longer one for a rendition; 0: only the size is read.
        rule: how it becomes a square; None: a rendition.
        max_pixels: larger pictures are refused.
        memory: limit in bytes.
        grows: it may request more.
        cpu_s: limit of processor time in seconds.
        box: the part that the rule takes for the whole; None: all of it.

    """

    file: IO[bytes]
    name: str
    size: int
    rule: PictureRule | None
    max_pixels: int
    memory: int
    grows: bool
    cpu_s: int
    box: Box | None = None

    def fits(self, answer: Answer) -> bool:
        """Tell whether these sizes are valid for a worker's picture."""
        height, width = answer.height, answer.width
        if (answer.code is Code.SIZE) != (not self.size) or (self.rule is None and 0 in answer.whole):
            return False
        if not self.size:
            return answer.size == 0
        if answer.size != 3 * height * width:
            return False
        if self.rule is not None:
            return height == width == self.size
        return 1 <= height <= self.size and 1 <= width <= self.size


class DecodingProcess:
    """A process that decodes one picture at a time.

    Attributes:
        begun: when its picture was assigned, by ``time.monotonic``.
        deadline: when its time ends.
        max_resident: memory limit in bytes for this picture.
        slow: it has a low priority, and ends after its picture.
        limits_memory: the system enforces its memory limit; else its parent polls.

    """

    def __init__(self, process: Process, channel: Channel, *, shares_memory: bool) -> None:
        """Wrap a started process; :meth:`wait_until_ready` follows."""
        self._process = process
        self._channel = channel
        self._shares_memory = shares_memory
        self._pixels: mmap.mmap | None = None
        self._killed: str | None = None
        self._ending = threading.Lock()
        self._status: str | None = None
        self.begun = self.deadline = time.monotonic()
        self.max_resident = 0
        self.slow = False
        self._is_last = False
        self.limits_memory = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_reusable(self) -> bool:
        """Whether it can decode another picture."""
        return not (self._is_last or self.slow or self._killed)

    def lives(self) -> bool:
        """Tell whether it is still running."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait until it accepts pictures.

        Raises:
            EOFError, OSError: it ended instead.
            FrameError: it is not one of our workers.

        """
        answer = self._channel.next_answer()
        if answer.code is not Code.READY:
            raise FrameError("not ready")
        self.limits_memory = answer.size > 0

    def begin(self, seconds: float) -> None:
        """Start the clock of a picture."""
        self.begun = time.monotonic()
        self.deadline = self.begun + seconds
        self._is_last = True  # until it has answered

    def lower_priority(self) -> None:
        """Lower its priority permanently: only root could raise it again."""
        self.slow = True
        with contextlib.suppress(AttributeError, OSError):
            os.setpriority(os.PRIO_PGRP, self.pid, _LOW_PRIORITY)  # of all its threads

    def decode(self, job: Job, grant: Callable[[int], int]) -> Decoded:
        """Decode a picture.

        Args:
            job: the picture.
            grant: called with the bytes that decoding takes; returns the limit, or raises an error
                that this method passes on.

        Raises:
            PictureError: it cannot be decoded.
            OutOfMemory: it exceeded its memory limit.
            EOFError, OSError: the process ended.
            FrameError: its answer was invalid.

        """
        self._ask(job)
        for _ in range(_MAX_NEEDS + 1):
            answer = self._channel.next_answer()
            if answer.code is not Code.NEEDS or not job.grows:
                return self._decoded(job, answer)
            self._channel.send({"memory": grant(answer.size)})
        raise FrameError("it asks for memory again and again")

    def _ask(self, job: Job) -> None:
        rule = job.rule
        request = {
            "name": job.name,
            "size": job.size,
            "rule": None if rule is None else rule.values(),
            "max_pixels": job.max_pixels,
            "memory": job.memory,
            "grows": job.grows,
            "cpu_s": job.cpu_s,
            "box": job.box,
        }
        if self._shares_memory:
            self._ask_with_descriptors(request, job)
            return
        with cast(io.BytesIO, job.file).getbuffer() as content:
            self._channel.send({**request, "bytes": len(content)})
            self._channel.write(content)

    def _ask_with_descriptors(self, request: dict[str, object], job: Job) -> None:
        """Pass the file, and memory for the pixels if this picture is larger than earlier ones."""
        size = 3 * job.size * job.size
        if not size or (self._pixels is not None and len(self._pixels) >= size):
            self._channel.send(request, [job.file.fileno()])
            return
        descriptor = _sealed_memory(size)
        try:
            self._pixels = mmap.mmap(descriptor, size)
            self._channel.send({**request, "pixels": size}, [job.file.fileno(), descriptor])
        finally:
            os.close(descriptor)

    def _decoded(self, job: Job, answer: Answer) -> Decoded:
        """Return the decoded picture.

        Raises:
            PictureError, OutOfMemory: it was refused.
            FrameError, EOFError, OSError: see :meth:`decode`.

        """
        if answer.code is Code.REFUSED:
            error = _refusal_of(self._channel.text(answer.size), job.name)
            self._is_last = answer.last or isinstance(error, FrameError)
            raise error
        if answer.code not in (Code.PICTURE, Code.SIZE) or not job.fits(answer):
            raise FrameError(f"{answer} for {job.size} pixels a side")
        if answer.code is Code.SIZE:
            self._is_last = answer.last
            return Decoded(None, answer.whole)
        # A copy: the worker may still change the shared memory.
        content = self._channel.read(answer.size) if self._pixels is None else self._pixels
        picture = np.frombuffer(content, np.uint8, answer.size).reshape(answer.height, answer.width, 3).copy()
        self._is_last = answer.last
        return Decoded(picture, answer.whole)

    def kill(self, reason: str) -> None:
        """Kill it; the first reason is kept."""
        if self._killed is None:
            self._killed = reason
        with contextlib.suppress(OSError):
            self._process.kill()

    def end(self) -> str:
        """Wait for its end; return the reason: of :meth:`kill`, "time", "crash" or "killed"."""
        with self._ending:
            if self._status is not None:
                return self._status
            try:
                status = self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(OSError):
                    self._process.kill()
                status = self._process.wait()
            self._channel.close()
            self._status = self._killed or _reason(status)
            return self._status


def _reason(status: int) -> str:
    if status == -getattr(signal, "SIGXCPU", 0):
        return "time"
    return "killed" if status == -getattr(signal, "SIGKILL", 0) else "crash"


def _refusal_of(values: dict[str, object], name: str) -> Exception:
    """Return the error for a worker's refusal, whose content may be anything."""
    message, kind, short = (values.get(key) for key in ("message", "kind", "short"))
    if values.get("out_of_memory") is True:
        return OutOfMemory(name)
    if kind not in get_args(PictureProblem) or not isinstance(message, str) or not isinstance(short, str):
        return FrameError("a refusal without its parts")
    message, short = printable(message[:_MAX_TEXT_CHARACTERS]), printable(short[:_MAX_TEXT_CHARACTERS])
    return PictureError(message, kind=cast(PictureProblem, kind), short=short)


def _sealed_memory(size: int) -> int:
    """Return a descriptor of memory for pixels, sealed against resizing."""
    import fcntl

    descriptor = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def file_of(source: PictureSource, *, shared: bool) -> Iterator[IO[bytes]]:
    """Open a source: in memory, or as a file whose descriptor a worker cannot misuse.

    Args:
        source: a path, or a binary file object.
        shared: descriptors are passed to workers.

    Raises:
        OSError: it cannot be read.

    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(Path(source).open("rb")) if isinstance(source, str | Path) else source
        if not shared and not isinstance(file, io.BytesIO):
            file.seek(0)
            file = io.BytesIO(file.read())
        elif shared and not _is_harmless(file):
            memory = stack.enter_context(open(os.memfd_create("upload", os.MFD_CLOEXEC), "w+b", buffering=0))  # noqa: PTH123
            file.seek(0)
            left = file.getbuffer() if isinstance(file, io.BytesIO) else memoryview(file.read())
            while left:
                left = left[memory.write(left) :]
            file = cast(IO[bytes], memory)
        yield file


def _is_harmless(file: IO[bytes]) -> bool:
    """Tell whether a descriptor can be passed: of a regular file, opened read-only."""
    if type(file) is not io.BufferedReader or type(file.raw) is not io.FileIO:
        return False
    import fcntl

    descriptor = file.fileno()
    read_only = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    return read_only and stat.S_ISREG(os.fstat(descriptor).st_mode)


def resident_bytes(pid: int) -> int:
    """Return another process's memory by ``ps``, for systems without limits; 0 if unknown."""
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        command = ["ps", "-o", "rss=", "-p", str(pid)]
        return int(subprocess.run(command, capture_output=True, timeout=5).stdout) * 1024
    return 0


def refusal(job: Job, reason: str, memory: int, wall_s: float) -> PictureError:
    """Return the error of a picture that was not fully decoded.

    Args:
        job: the picture.
        reason: "memory", "time", "late" or "killed"; anything else means a crash.
        memory: the limit in bytes, the file included.
        wall_s: the limit of wall time.

    """
    if reason == "memory" and not job.grows:
        reason = "bounded"
    sentence, kind, short = _REFUSALS[reason if reason in _REFUSALS else "crash"]
    values = {"memory": f"{memory / 1e6:,.0f} MB", "cpu": job.cpu_s, "wall": f"{wall_s:g}"}
    return PictureError(f"{job.name} {sentence.format(**values)}", kind=kind, short=short.format(**values))


_REFUSALS: dict[str, tuple[str, PictureProblem, str]] = {
    "bounded": (
        "takes more than {memory} of memory to decode; make it smaller, save it as a plain JPEG or PNG, or raise the "
        "limit (--max-decoding).",
        "too large",
        "takes more than {memory} to decode",
    ),
    "memory": (
        "takes more than {memory} of memory to decode; make it smaller, or save it as a plain JPEG or PNG.",
        "too large",
        "takes more than {memory} to decode",
    ),
    "time": (
        "takes more than {cpu} seconds of CPU time to decode; make it smaller, or save it as a plain JPEG or PNG.",
        "too large",
        "takes more than {cpu} seconds to decode",
    ),
    "late": (
        "was not decoded within {wall} seconds; try again when the machine is less busy.",
        "unreadable",
        "was not decoded in time",
    ),
    "killed": (
        "was not decoded, because the system ended its decoding process; try again.",
        "unreadable",
        "its decoding was ended by the system",
    ),
    "crash": (
        "made its decoder fail, so it is damaged; save it again, or leave it out.",
        "damaged",
        "made its decoder fail",
    ),
}
