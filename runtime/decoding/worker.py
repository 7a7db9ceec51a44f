"""A decoding process: takes a file and a rule, gives back pixels or a sentence.

``python -c "...worker import main; main()"``, started by :mod:`.pool`. It imports the decoders and nothing else of
ours: no ONNX Runtime, no graph, no web server. Then it takes its limits, and opens no file by a name any more; where
:mod:`.confinement` can see to that, it could not even if a decoder were taken over.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import mmap
import os
import select
import signal
import stat
import sys
from collections.abc import Iterator
from typing import IO, Any

from PIL import Image

from .. import images, shell
from ..errors import PictureError
from ..images import ByteBudget, Picture, PictureRule, load_picture, load_thumbnail
from ..pictures.faults import is_out_of_memory
from .confinement import confine
from .frames import MAX_TEXT, Answer, Channel, Code
from .launching import EXITED, STARTED

__all__ = ["main"]

_DECODERS = (
    *("pictures.jpeg", "pictures.png", "pictures.gif", "pictures.bmp", "pictures.tiff", "pictures.webp"),
    *("pictures.heif", "pictures.exif", "console"),
)
# Threads of a decoder that has some: on a machine of many cores, their stacks alone would pass the limit of memory.
_THREADS = 4
_MAX_FILES = 32
# What takes less is granted to every worker.
_SMALL = 16_000_000
# A worker that holds on to more than this after a picture is replaced.
_MAX_GROWTH = 64_000_000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def main() -> None:
    """Decode until the parent is gone, or fork workers that do."""
    # Ctrl-C in a terminal and a service's end are for the parent, which finishes what is in flight.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    task, transfer, memory, parent = sys.argv[1:]
    shared, hold = transfer == "shared", memory == "limited"
    _end_with_parent(int(parent))
    _import_decoders()
    channel = Channel(0, 0) if stat.S_ISSOCK(os.fstat(0).st_mode) else Channel(0, os.dup(1))
    _give_up_the_rest()
    _be_silent()
    with contextlib.suppress(EOFError, OSError):
        if task == "forks":
            channel.write(b"1")
            worker = _fork_workers(channel)
            if worker is None:
                return
            channel = worker
        Worker(channel, Limits(hold=hold), shared=shared).serve()


def _fork_workers(control: Channel) -> Channel | None:
    """Fork a worker for each line that the parent hands over, and say how each ended; return twice, as ``fork`` does.

    Returns:
        in a worker, its line; None in this process, when the parent is gone.

    """
    me = os.getpid()
    died, dies = os.pipe()
    os.set_blocking(dies, False)
    signal.set_wakeup_fd(dies, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        ready, _, _ = select.select([0, died], [], [])
        if died in ready:
            os.read(died, 4096)
            _report_ended(control)
        if 0 not in ready:
            continue
        try:
            _, (line,) = control.receive(1)
        except (EOFError, OSError):
            return None
        try:
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (died, dies):
                os.close(descriptor)
            os.dup2(line, 0)
            os.close(line)
            os.setpgid(0, 0)  # so that its priority is its own
            _die_first()
            _end_with_parent(me)
            return Channel(0, 0)
        os.close(line)
        control.write(EXITED.pack(pid, STARTED))


def _report_ended(control: Channel) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            control.write(EXITED.pack(pid, os.waitstatus_to_exitcode(status)))


class Limits:
    """What this process may take; the parent watches over the time by the clock.

    Attributes:
        base: bytes of address space while it does nothing; 0: the system does not tell, or is not to limit it.

    """

    def __init__(self, *, hold: bool) -> None:
        self._pages: IO[bytes] | None = None
        if hold:
            with contextlib.suppress(OSError):  # opened once: nothing is opened while pictures are decoded
                self._pages = open("/proc/self/statm", "rb", buffering=0)  # noqa: PTH123, SIM115
        self.base = self._address_space()

    def take(self, memory: int) -> None:
        """Let the rest of this picture take so many bytes."""
        if self.base:
            self._set("RLIMIT_AS", self.base + memory)

    def lift(self) -> None:
        """Let this process take what it needs to answer, and to receive the next picture."""
        if self.base:
            self._set("RLIMIT_AS", sys.maxsize)

    def start_clock(self, seconds: int) -> None:
        """Let this picture take so many seconds of the processor."""
        with contextlib.suppress(ImportError):
            import resource

            usage = resource.getrusage(resource.RUSAGE_SELF)
            self._set("RLIMIT_CPU", int(usage.ru_utime + usage.ru_stime) + 1 + seconds)

    def has_grown(self) -> bool:
        """Tell whether earlier pictures have left so much behind that the next one would lack it."""
        return bool(self.base) and self._address_space() > self.base + _MAX_GROWTH

    def _address_space(self) -> int:
        """Return the bytes of this process's address space; 0 where the system does not tell."""
        if self._pages is None:
            return 0
        self._pages.seek(0)
        return int(self._pages.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    @staticmethod
    def _set(name: str, most: int) -> None:
        import resource

        with contextlib.suppress(ValueError, OSError):
            which = getattr(resource, name)
            hard = resource.getrlimit(which)[1]
            resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


class Worker:
    """Decodes one picture after the other.

    Args:
        channel: to the parent.
        limits: of this process.
        shared: files come as descriptors, and pixels go back in memory of the parent; else as bytes.

    """

    def __init__(self, channel: Channel, limits: Limits, *, shared: bool) -> None:
        self._channel = channel
        self._limits = limits
        self._shared = shared
        self._pixels: mmap.mmap | None = None

    def serve(self) -> None:
        """Decode pictures until the parent is gone, or one of them has left too much behind."""
        confine()
        self._channel.answer(Answer(Code.READY, size=self._limits.base))
        while not self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """Decode one picture, and tell whether this process should end."""
        request, descriptors = self._channel.receive(2 if self._shared else 0)
        try:
            if len(descriptors) > 1:
                self._pixels = mmap.mmap(descriptors[1], request["pixels"])
            self._limits.take(request["memory"])
            self._limits.start_clock(request["cpu_s"])
            grows = request["grows"]
            images.decoding_budget = _Granted(self._channel, self._limits) if grows else ByteBudget(sys.maxsize)
            result: Picture | bytes
            try:
                with _opened(request, descriptors[0]) if self._shared else _received(request, self._channel) as file:
                    result = _decoded(request, file)
            except PictureError as error:
                result = _refusal(error, out_of_memory=is_out_of_memory(error))
            except MemoryError as error:  # there was none left to say so
                result = _refusal(PictureError(str(error)), out_of_memory=True)
            self._limits.lift()
            last = self._limits.has_grown()  # without what an error had held
            if isinstance(result, bytes):
                self._channel.answer(Answer(Code.REFUSED, last, size=len(result)), result)
            else:
                self._give(result, last)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return last

    def _give(self, picture: Picture, last: bool) -> None:
        """Answer with pixels: in memory of the parent, or where that cannot be shared, behind the answer."""
        height, width = picture.shape[:2]
        answer = Answer(Code.PICTURE, last, height, width, picture.nbytes)
        if self._pixels is None:
            self._channel.answer(answer, picture.tobytes())
            return
        self._pixels[: picture.nbytes] = picture.tobytes()
        self._channel.answer(answer)


def _decoded(request: dict[str, Any], file: IO[bytes]) -> Picture:
    if request["rule"] is None:
        return load_thumbnail(file, request["size"], max_pixels=request["max_pixels"])
    rule = PictureRule(request["size"], *request["rule"])
    return load_picture(file, rule, max_pixels=request["max_pixels"])


def _opened(request: dict[str, Any], descriptor: int) -> IO[bytes]:
    raw = io.FileIO(descriptor, closefd=False)
    raw.name = request["name"]
    file = io.BufferedReader(raw)
    file.seek(0)
    return file


def _received(request: dict[str, Any], channel: Channel) -> IO[bytes]:
    file = io.BytesIO(channel.read(request["bytes"]))
    file.name = request["name"]
    return file


def _refusal(error: PictureError, *, out_of_memory: bool) -> bytes:
    values = {"message": str(error), "kind": error.kind, "short": error.short, "out_of_memory": out_of_memory}
    content = json.dumps(values).encode()
    if len(content) > MAX_TEXT:
        values["message"], values["short"] = str(error)[: MAX_TEXT // 32], error.kind
        content = json.dumps(values).encode()
    return content


def _give_up_the_rest() -> None:
    """Give up what decoding does not need: core files, writing files, many descriptors, new privileges."""
    with contextlib.suppress(ImportError):
        import resource

        for name, most in (("CORE", 0), ("FSIZE", 0), ("NOFILE", _MAX_FILES)):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _die_first() -> None:
    """Be what the system ends where memory runs out, rather than the server."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")


class _Granted(ByteBudget):
    """The parent's budget of memory, which all workers share."""

    def __init__(self, channel: Channel, limits: Limits) -> None:
        super().__init__(0)
        self._channel = channel
        self._limits = limits

    @contextlib.contextmanager
    def reserve(self, size: int, timeout: float | None = None) -> Iterator[None]:
        """Wait until the parent grants so many bytes; it takes them back at the end of this picture."""
        if size > _SMALL:
            self._channel.answer(Answer(Code.NEEDS, size=size))
            granted, _ = self._channel.receive()
            self._limits.take(granted["memory"])
        yield


def _import_decoders() -> None:
    """Import what decoding takes before there are limits, and while files can be opened."""
    for name in _DECODERS:
        importlib.import_module(f"...{name}", __name__)
    with contextlib.suppress(ImportError):
        from PIL import AvifImagePlugin

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        AvifImagePlugin.DEFAULT_MAX_THREADS = min(cores, _THREADS)
    for name in ("PIL._webp", "PIL._avif", "_pi_heif", "_pillow_heif"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    shell.pip("install")  # of a decoder that is missing; it looks for pip
    _use_decoders()


def _use_decoders() -> None:
    """Decode a picture of each format, and something that is none: what is imported or loaded at first use is, then."""
    for image_format in ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", "AVIF", None):
        content = io.BytesIO(b"no picture")
        with contextlib.suppress(KeyError, OSError, PictureError):  # a build of Pillow may lack a format
            if image_format is not None:
                Image.new("RGB", (16, 16)).save(content, image_format)
            content.seek(0)
            load_picture(content, PictureRule(8))


def _end_with_parent(parent: int) -> None:
    """Die when the parent does, however it dies; where the system cannot do that, its end of the line says it."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM if not hasattr(signal, "SIGKILL") else signal.SIGKILL)
    if hasattr(os, "getppid") and os.getppid() != parent and sys.platform == "linux":
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _be_silent() -> None:
    """Print nothing from here on: decoders warn of what they read, in a stranger's words."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.close(nothing)
