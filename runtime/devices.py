"""Which processor runs the network, with how many threads, and within which limits of memory and time."""

from __future__ import annotations

import _thread
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .cgroups import cpu_quota, memory_limit
from .errors import DeviceError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = [
    "Deadline",
    "Device",
    "cpu_features",
    "cuda_usable",
    "fast_int8",
    "has_vnni",
    "limit_memory",
    "nvidia_gpus",
    "processor",
    "session_options",
    "session_providers",
    "usable_cores",
]

Device = Literal["auto", "cpu", "cuda"]

# Beyond four threads a batch of small pictures gains little; decoding needs the other cores.
_MOST_DEFAULT_THREADS = 4
# Features of x86 processors that decide what eight-bit numbers are worth, as Linux calls them.
_EIGHT_BIT = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
# Bytes of /proc/cpuinfo that hold the first core's features.
_ONE_CORE = 8192
# What all models may take: results of a batch of each core, of networks that embed pictures; weights as they are read
# and as they are packed, in a session of all cores and in one of a single core.
_BESIDE = 512 * 2**20
_A_CORES = 512 * 2**20
_MOST_CORES = 16
_COPIES = 4
_SMALL_MODEL = 32 * 2**20 - 1
# Where the machine's memory is not told.
_MEMORY = 16 * 2**30


class Deadline:
    """Calls ``end`` from a thread of its own unless the block is left within ``seconds``.

    ``threading.Timer`` waits until its thread runs; this starts in half the time, and a query pays for it twice.
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
    """Return the cores this process may use; in a container that can be fewer than the machine has.

    Where it may run on more cores than it is granted the time of, it would be stopped again and again.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


@functools.cache
def _quota() -> float | None:
    return cpu_quota()


def processor() -> str:
    """Return the kind of processor, and what it has for eight-bit numbers where the system tells."""
    import platform  # which a query does not need

    return " ".join([platform.machine(), *(flag for flag in _EIGHT_BIT if flag in _features())])


def cpu_features() -> frozenset[str]:
    """Return the features of an x86 processor as Linux names them, such as ``avx2``; none where it is another."""
    return _features()


@functools.cache
def _features() -> frozenset[str]:
    """Return what Linux calls the features of an x86 processor; nothing where it is another, or does not tell."""
    try:
        # All cores' together are long, and made anew by whoever asks.
        with Path("/proc/cpuinfo").open("rb", buffering=0) as file:
            lines = file.read(_ONE_CORE).decode("ascii", "replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def has_vnni() -> bool:
    """Tell whether the processor has instructions for sums of eight-bit products."""
    return not _features().isdisjoint(_VNNI)


@functools.cache
def fast_int8() -> bool:
    """Tell whether eight-bit numbers are what networks run fastest with here: instructions for them, and no GPU."""
    return has_vnni() and not cuda_usable()


def session_options(threads: int | None) -> tuple[ort.SessionOptions, int]:
    """Return quiet, sequential session options with ``threads`` threads (default: usable cores, at most 4)."""
    import onnxruntime as ort

    if threads is not None and threads < 1:
        raise DeviceError(f"threads = {threads}; expected at least 1.")
    used = threads or min(usable_cores(), _MOST_DEFAULT_THREADS)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions, and only as those
    options.intra_op_num_threads = used
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Spinning threads would take the cores that decode the next batch, and double the CPU time of a single query.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not has_vnni():
        # Eight-bit kernels for AVX2 add products in 16 bits, which saturate: a cosine falls from 0.996 to 0.956. These
        # cannot, so that an int8 file gives the same vectors everywhere. With VNNI they would be half as fast.
        options.add_session_config_entry("session.x64quantprecision", "1")
    # A file that begins like ONNX Runtime's own format would be read as that.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # A hostile file would compute gigabytes for minutes while it is opened; what is left to fold in ours is nothing.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
    return options, used


def limit_memory(options: ort.SessionOptions, file_bytes: int, beside: int = 0) -> None:
    """Let weights and intermediate results on the CPU take a bounded part of memory, in all sessions together.

    Args:
        options: of a session that runs on the CPU alone.
        file_bytes: size of its model file. The limit of a process is that of the largest model it has opened.
        beside: how much operators of the model take beside these, as a multiple; the results get so much less.

    """
    results = _BESIDE + min(usable_cores(), _MOST_CORES) * _A_CORES
    if beside:  # results may take what is there for weights, too
        limit = results // (1 + beside) + _COPIES * file_bytes
    else:
        rounded = 1 << max(file_bytes, _SMALL_MODEL).bit_length()  # models of about the same size share one limit
        limit = results + _COPIES * rounded
    _arena.allow(min(_memory() // 2, limit), beside)
    options.add_session_config_entry("session.use_env_allocators", "1")


class _Arena:
    """The memory that sessions on the CPU share; never made smaller, as a session of one core may still be opened."""

    def __init__(self) -> None:
        self._limits: dict[int, int] = {}
        self._registered: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def allow(self, limit: int, beside: int) -> None:
        """Let sessions that are opened from now on take so many bytes together, or more where that was allowed.

        Those of models whose operators take memory beside it have an arena of their own.
        """
        import onnxruntime as ort

        with self._lock:
            limit = self._limits[beside] = max(limit, self._limits.get(beside, 0))
            if self._registered == (beside, limit):
                return
            memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            # Sessions that are open keep the one they have.
            ort.create_and_register_allocator(memory, ort.OrtArenaCfg(limit, -1, -1, -1))
            self._registered = (beside, limit)


_arena = _Arena()


def _memory() -> int:
    """Return the bytes of memory that the machine has, or that a container grants."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else _MEMORY
    granted = memory_limit()
    return machine if granted is None else min(machine, granted)


def session_providers(device: Device) -> list[Any]:
    """Return the ONNX Runtime providers for ``device``.

    Raises:
        DeviceError: ``cuda`` was asked for where it cannot work.

    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device {device!r} is unknown; expected auto, cpu or cuda.")
    cuda = device != "cpu" and cuda_usable()
    if device == "cuda" and not cuda:
        from .shell import install_extra

        raise DeviceError(
            "CUDA was asked for, but there is no NVIDIA driver or no ONNX Runtime with CUDA here; use --device cpu, "
            f"or install the driver and: {install_extra('cuda')}"
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]


@functools.cache
def cuda_usable() -> bool:
    """Tell whether asking for CUDA makes sense; ONNX Runtime itself claims it even where there is no GPU."""
    import onnxruntime as ort

    return "CUDAExecutionProvider" in ort.get_available_providers() and nvidia_gpus() > 0


@functools.cache
def nvidia_gpus() -> int:
    """Return the number of NVIDIA GPUs that the driver offers; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
    except OSError:
        return 0
