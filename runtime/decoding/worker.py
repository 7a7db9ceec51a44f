"""A decoding process: takes a file and a rule, returns pixels or an error message.

``python -c "...worker import main; main()"``, started by :mod:`.pool`. Of our code it imports only
the decoders: no ONNX Runtime, no graph, no web server. Then it sets its limits, and opens no more
files by name. With :mod:`.confinement` it could not, even if a decoder were taken over.
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
from ..images import ByteBudget, Picture, PictureRule, Size, load_picture, load_rendition, load_size
from ..pictures.faults import is_out_of_memory
from .confinement import confine
from .frames import MAX_TEXT, Answer, Channel, Code
from .launcher import EXITED, STARTED

__all__ = ["main"]

_DECODERS = (
    *("pictures.jpeg", "pictures.png", "pictures.gif", "pictures.bmp", "pictures.tiff", "pictures.webp"),
    *("pictures.heif", "pictures.exif", "console"),
)
# For decoders with threads: on many cores, their stacks alone would exceed the memory limit.
_THREADS = 4
_MAX_FILES = 32
# Smaller requests are always granted.
_SMALL = 16_000_000
# A worker that keeps more memory than this after a picture is replaced.
_MAX_GROWTH = 64_000_000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def main() -> None:
    """Decode until the parent ends, or fork workers that do."""
    # Ctrl-C and a service's stop are for the parent, which finishes work in flight.
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
    """Fork a worker for each connection from the parent, and report each exit.

    Returns twice, as ``fork`` does.

    Returns:
        in a worker, its connection; None in this process, when the parent has ended.

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
            os.setpgid(0, 0)  # for a priority separate from other workers
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
    """Limits of this process; the parent enforces wall time.

    Attributes:
        base: address space in bytes while idle; 0: unknown, or not limited.

    """

    def __init__(self, *, hold: bool) -> None:
        self._pages: IO[bytes] | None = None
        if hold:
            with contextlib.suppress(OSError):  # opened once: no files are opened while decoding
                self._pages = open("/proc/self/statm", "rb", buffering=0)  # noqa: PTH123, SIM115
        self.base = self._address_space()

    def take(self, memory: int) -> None:
        """Limit the rest of this picture to ``memory`` more bytes."""
        if self.base:
            self._set("RLIMIT_AS", self.base + memory)

    def lift(self) -> None:
        """Lift the limit, to answer and to receive the next picture."""
        if self.base:
            self._set("RLIMIT_AS", sys.maxsize)

    def start_clock(self, seconds: int) -> None:
        """Limit this picture to ``seconds`` of processor time."""
        with contextlib.suppress(ImportError):
            import resource

            usage = resource.getrusage(resource.RUSAGE_SELF)
            self._set("RLIMIT_CPU", int(usage.ru_utime + usage.ru_stime) + 1 + seconds)

    def has_grown(self) -> bool:
        """Tell whether earlier pictures left too little memory for the next one."""
        return bool(self.base) and self._address_space() > self.base + _MAX_GROWTH

    def _address_space(self) -> int:
        """Return this process's address space in bytes; 0 if the system does not report it."""
        if self._pages is None:
            return 0
        self._pages.seek(0)
        return int(self._pages.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    @staticmethod
    def _set(name: str, limit: int) -> None:
        import resource

        with contextlib.suppress(ValueError, OSError):
            which = getattr(resource, name)
            hard = resource.getrlimit(which)[1]
            resource.setrlimit(which, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


class Worker:
    """Decodes one picture after the other.

    Args:
        channel: to the parent.
        limits: of this process.
        shared: files arrive as descriptors, and pixels return in memory of the parent; else as
            bytes.

    """

    def __init__(self, channel: Channel, limits: Limits, *, shared: bool) -> None:
        self._channel = channel
        self._limits = limits
        self._shared = shared
        self._pixels: mmap.mmap | None = None

    def serve(self) -> None:
        """Decode pictures until the parent ends, or until one leaves too much memory behind."""
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
            result: tuple[Picture | None, Size] | bytes
            try:
                with _opened(request, descriptors[0]) if self._shared else _received(request, self._channel) as file:
                    result = _decoded(request, file)
            except PictureError as error:
                result = _refusal(error, out_of_memory=is_out_of_memory(error))
            except MemoryError as error:  # no memory was left to report it
                result = _refusal(PictureError(str(error)), out_of_memory=True)
            self._limits.lift()
            last = self._limits.has_grown()  # after the error and its frames are freed
            if isinstance(result, bytes):
                self._channel.answer(Answer(Code.REFUSED, last, size=len(result)), result)
            else:
                self._give(*result, last)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return last

    def _give(self, picture: Picture | None, whole: Size, last: bool) -> None:
        """Answer with a size, and with pixels: in the parent's memory, or else after the answer."""
        if picture is None:
            self._channel.answer(Answer(Code.SIZE, last, whole=whole))
            return
        height, width = picture.shape[:2]
        answer = Answer(Code.PICTURE, last, height, width, whole, picture.nbytes)
        if self._pixels is None:
            self._channel.answer(answer, picture.tobytes())
            return
        self._pixels[: picture.nbytes] = picture.tobytes()
        self._channel.answer(answer)


def _decoded(request: dict[str, Any], file: IO[bytes]) -> tuple[Picture | None, Size]:
    if not request["size"]:
        return None, load_size(file)
    if request["rule"] is None:
        return load_rendition(file, request["size"], max_pixels=request["max_pixels"])
    rule, box = PictureRule.from_values(request["rule"]), request["box"]
    return load_picture(file, rule, max_pixels=request["max_pixels"], box=box), (0, 0)


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
    """Give up core files, writing files, many descriptors and new privileges."""
    with contextlib.suppress(ImportError):
        import resource

        for name, most in (("CORE", 0), ("FSIZE", 0), ("NOFILE", _MAX_FILES)):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _die_first() -> None:
    """Make this process the kernel's first choice when memory runs out, rather than the server."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")


class _Granted(ByteBudget):
    """The parent's memory budget, shared by all workers."""

    def __init__(self, channel: Channel, limits: Limits) -> None:
        super().__init__(0)
        self._channel = channel
        self._limits = limits

    @contextlib.contextmanager
    def reserve(self, size: int, timeout: float | None = None) -> Iterator[None]:
        """Wait until the parent grants ``size`` bytes; it reclaims them after this picture."""
        if size > _SMALL:
            self._channel.answer(Answer(Code.NEEDS, size=size))
            granted, _ = self._channel.receive()
            self._limits.take(granted["memory"])
        yield


def _import_decoders() -> None:
    """Import the decoders, before there are limits and while files can be opened."""
    for name in _DECODERS:
        importlib.import_module(f"...{name}", __name__)
    with contextlib.suppress(ImportError):
        from PIL import AvifImagePlugin

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        AvifImagePlugin.DEFAULT_MAX_THREADS = min(cores, _THREADS)
    for name in ("PIL._webp", "PIL._avif", "_pi_heif", "_pillow_heif"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    shell.pip("install")  # for the error of a missing decoder; it looks for pip
    _use_decoders()


def _use_decoders() -> None:
    """Decode a picture of each format and a non-picture, to trigger all lazy imports and loads."""
    for image_format in ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", "AVIF", None):
        content = io.BytesIO(b"no picture")
        with contextlib.suppress(KeyError, OSError, PictureError):  # Pillow may lack a format
            if image_format is not None:
                Image.new("RGB", (16, 16)).save(content, image_format)
            content.seek(0)
            load_picture(content, PictureRule(8))


def _end_with_parent(parent: int) -> None:
    """Die with the parent, however it dies; without system support, the closed connection tells."""
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
    """Silence all output from here on: decoders print warnings with text from untrusted files."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.close(nothing)
