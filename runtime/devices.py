"""Processors, threads and memory: what this process may use, and the ONNX Runtime session options that follow."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import DeviceError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = [
    "ByteBudget",
    "Deadline",
    "Device",
    "cpu_features",
    "cpu_quota",
    "cuda_usable",
    "fast_int8",
    "has_vnni",
    "is_out_of_memory",
    "limit_memory",
    "memory_limit",
    "nvidia_gpus",
    "processor",
    "return_large_blocks",
    "session_options",
    "session_providers",
    "usable_cores",
]

Device = Literal["auto", "cpu", "cuda"]

# Beyond four threads a batch of small pictures gains little; decoding needs the other cores.
_MAX_DEFAULT_THREADS = 4
# x86 features that decide the speed of int8, by their Linux names.
_EIGHT_BIT = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
# Bytes of /proc/cpuinfo that contain the first core's features.
_ONE_CORE = 8192
# Allowance for all models: activations of a batch on each core, for embedding networks; weights as
# read and as packed, in one session for all cores and one for a single core.
_BESIDE = 512 * 2**20
_A_CORES = 512 * 2**20
_MAX_CORES = 16
_COPIES = 4
_SMALL_MODEL = 32 * 2**20 - 1
# ONNX Runtime has no error code or type for lack of memory, so its words tell: of limit_memory's limit, of the system,
# and of a GPU. No other module reads them.
_OUT_OF_MEMORY = ("BFCArena", "bad_alloc", "Failed to allocate memory", "out of memory")
# Assumed if the system does not report its memory.
_MEMORY = 16 * 2**30
# From malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Below what Pillow allocates at a time for large pictures, above what networks and small pictures
# need. As much freed memory is kept: to request each page of a small picture again takes a tenth of
# the time of decoding it.
_LARGE = 4 << 20

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")

# Yields the limit of one folder of the control groups, if it has one.
_Reader = Callable[[Path], Iterator[float]]


class Deadline:
    """Calls ``end`` from its own thread unless the block ends within ``seconds``.

    ``threading.Timer`` waits until its thread runs. This starts in half the time, and a query pays
    for it twice.
    """

    def __init__(self, seconds: float, end: Callable[[], object]) -> None:
        self.passed = False
        self._seconds = seconds
        self._end = end
        self._left = threading.Lock()

    def __enter__(self) -> Deadline:
        self._left.acquire()
        _thread.start_new_thread(self._watch, ())
        return self

    def __exit__(self, *error: object) -> None:
        self._left.release()

    def _watch(self) -> None:
        if not self._left.acquire(timeout=self._seconds):
            self.passed = True
            self._end()


def usable_cores() -> int:
    """Return the number of cores this process may use; a container may have fewer than the machine.

    With more threads than its CPU quota, the process would be stopped again and again.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


@functools.cache
def _quota() -> float | None:
    return cpu_quota()


def processor() -> str:
    """Return the processor type, with its int8 features where the system reports them."""
    import platform  # unused by queries

    return " ".join([platform.machine(), *(flag for flag in _EIGHT_BIT if flag in cpu_features())])


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return the features of an x86 processor as Linux names them, such as ``avx2``; empty for other processors."""
    try:
        # The features of all cores together are long, and Linux formats them at each read.
        with Path("/proc/cpuinfo").open("rb", buffering=0) as file:
            lines = file.read(_ONE_CORE).decode("ascii", "replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def has_vnni() -> bool:
    """Tell whether the processor has instructions for sums of int8 products."""
    return not cpu_features().isdisjoint(_VNNI)


@functools.cache
def fast_int8() -> bool:
    """Tell whether int8 networks run fastest here: the processor has VNNI, and there is no GPU."""
    return has_vnni() and not cuda_usable()


# ConstantFolding: a hostile file could compute gigabytes for minutes on opening; ours leave nothing
# to fold. MatmulTransposeFusion: on some float16 attention, such as open_clip's, it leaves a graph on
# which ONNX Runtime 1.31 then crashes; without it a ViT takes 0.98 to 0.99 of the time.
_NO_OPTIMIZERS = ("ConstantFolding", "MatmulTransposeFusion")


def session_options(threads: int | None) -> tuple[ort.SessionOptions, int]:
    """Return quiet, sequential session options.

    ``threads`` defaults to the usable cores, at most 4.
    """
    import onnxruntime as ort

    if threads is not None and threads < 1:
        raise DeviceError(f"threads = {threads}; expected at least 1.")
    used = threads or min(usable_cores(), _MAX_DEFAULT_THREADS)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors arrive as exceptions; no log lines
    options.intra_op_num_threads = used
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Spinning threads take cores from decoding, and double the CPU time of a single query.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not has_vnni():
        # Default int8 kernels for AVX2 add products in 16 bits, which saturate: a cosine falls from
        # 0.996 to 0.956. This setting avoids that, so that an int8 file gives the same vectors on
        # all machines. With VNNI it would halve the speed.
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Otherwise a file that starts like ONNX Runtime's ORT format would be read as one.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("optimization.disable_specified_optimizers", ";".join(_NO_OPTIMIZERS))
    return options, used


def limit_memory(options: ort.SessionOptions, file_bytes: int, overhead: int = 0) -> None:
    """Limit the CPU memory for weights and activations, shared by all sessions.

    Args:
        options: of a session that runs on the CPU only.
        file_bytes: size of the model file. The process limit is that of the largest model opened so
            far.
        overhead: memory that the model's operators take outside their tensors, as a multiple of
            these; the limit is smaller by this factor.

    """
    activations = _BESIDE + min(usable_cores(), _MAX_CORES) * _A_CORES
    if overhead:  # activations may use the part for weights, too
        limit = activations // (1 + overhead) + _COPIES * file_bytes
    else:
        rounded = 1 << max(file_bytes, _SMALL_MODEL).bit_length()  # models of similar size share one limit
        limit = activations + _COPIES * rounded
    _arena.allow(min(_memory() // 2, limit), overhead)
    options.add_session_config_entry("session.use_env_allocators", "1")


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a session could not get the memory to run, on the CPU or on a GPU."""
    return any(sign in str(error) for sign in _OUT_OF_MEMORY)


class _Arena:
    """The CPU memory that sessions share; it never shrinks, as a one-core session may follow."""

    def __init__(self) -> None:
        self._limits: dict[int, int] = {}
        self._registered: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def allow(self, limit: int, overhead: int) -> None:
        """Allow sessions opened from now on ``limit`` bytes together, never less than before.

        Models with another overhead have a separate arena.
        """
        import onnxruntime as ort

        with self._lock:
            limit = self._limits[overhead] = max(limit, self._limits.get(overhead, 0))
            if self._registered == (overhead, limit):
                return
            memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            # Open sessions keep their allocator.
            ort.create_and_register_allocator(memory, ort.OrtArenaCfg(limit, -1, -1, -1))
            self._registered = (overhead, limit)


_arena = _Arena()


def _memory() -> int:
    """Return the memory of the machine or the container, in bytes."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else _MEMORY
    granted = memory_limit()
    return machine if granted is None else min(machine, granted)


def session_providers(device: Device) -> list[Any]:
    """Return the ONNX Runtime providers for ``device``.

    Raises:
        DeviceError: ``cuda`` was requested but cannot work.

    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device {device!r} is unknown; expected auto, cpu or cuda.")
    cuda = device != "cpu" and cuda_usable()
    if device == "cuda" and not cuda:
        from .shell import install_extra

        raise DeviceError(
            "CUDA was requested, but there is no NVIDIA driver or no ONNX Runtime with CUDA here; use --device cpu, "
            f"or install the driver and: {install_extra('cuda')}"
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]


@functools.cache
def cuda_usable() -> bool:
    """Tell whether CUDA can be tried; ONNX Runtime lists it even without a GPU."""
    import onnxruntime as ort

    return "CUDAExecutionProvider" in ort.get_available_providers() and nvidia_gpus() > 0


@functools.cache
def nvidia_gpus() -> int:
    """Return the number of NVIDIA GPUs that the driver reports; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
    except OSError:
        return 0


def cpu_quota(own: Path = _OWN_CGROUPS, mounted: Path = _CGROUPS) -> float | None:
    """Return the cores that Linux's control groups grant, as in a container; None: there is no limit.

    Args:
        own: the control groups of this process, as Linux lists them.
        mounted: where they are mounted.

    """
    return min(_limits("cpu", _cpu_of_version_1, _cpu_of_version_2, own, mounted), default=None)


def memory_limit(own: Path = _OWN_CGROUPS, mounted: Path = _CGROUPS) -> int | None:
    """Return the bytes of memory that Linux's control groups grant, as in a container; None: there is no limit.

    Args:
        own: the control groups of this process, as Linux lists them.
        mounted: where they are mounted.

    """
    limit = min(_limits("memory", _memory_of_version_1, _memory_of_version_2, own, mounted), default=None)
    return None if limit is None else int(limit)


def _limits(controller: str, old: _Reader, new: _Reader, own: Path, mounted: Path) -> Iterator[float]:
    """Yield the limits of the control groups of this process and of those above them, of versions 1 and 2."""
    try:
        lines = own.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = mounted / controllers if controllers else mounted
        relative = Path(path.lstrip("/"))
        for folder in (relative, *relative.parents):
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                yield from (old if controllers else new)(top / folder)


def _cpu_of_version_2(folder: Path) -> Iterator[float]:
    granted, period = (folder / "cpu.max").read_bytes().split()
    if granted != b"max":
        yield int(granted) / int(period)


def _cpu_of_version_1(folder: Path) -> Iterator[float]:
    granted = int((folder / "cpu.cfs_quota_us").read_bytes())
    if granted > 0:
        yield granted / int((folder / "cpu.cfs_period_us").read_bytes())


def _memory_of_version_2(folder: Path) -> Iterator[float]:
    granted = (folder / "memory.max").read_bytes().strip()
    if granted != b"max":
        yield int(granted)


def _memory_of_version_1(folder: Path) -> Iterator[float]:
    yield int((folder / "memory.limit_in_bytes").read_bytes())  # close to 2^63 without a limit


def return_large_blocks(*, decodes: bool = True) -> bool:
    """Keep glibc from holding on to large blocks of this process.

    By default it keeps freed blocks, which are too scattered for the next picture: a folder of pictures of 50
    megapixels then takes half as much memory again. Nothing is changed if ``MALLOC_*`` or ``GLIBC_TUNABLES`` in the
    environment configure it, or if the C library is another.

    Args:
        decodes: keep up to 4 MB of small blocks for each thread, for the next picture.

    Returns:
        whether the allocator accepted the settings.

    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if os.name != "posix":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or mallopt(_MMAP_THRESHOLD, _LARGE) != 1:
        return False
    return not decodes or mallopt(_TRIM_THRESHOLD, _LARGE) == 1


class ByteBudget:
    """A semaphore counted in bytes: it bounds the memory of concurrent work."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_use = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, size: int, timeout: float | None = None) -> Iterator[None]:
        """Wait until ``size`` bytes fit, or until there is no other work.

        Raises:
            TimeoutError: they did not fit within ``timeout`` seconds.

        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._in_use == 0 or self._in_use + size <= self._limit, timeout):
                raise TimeoutError
            self._in_use += size
        try:
            yield
        finally:
            with self._changed:
                self._in_use -= size
                self._changed.notify_all()
