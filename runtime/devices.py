"""Which processor runs the network, and with how many threads."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

from .errors import DeviceError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["Device", "session_options", "session_providers", "usable_cores"]

Device = Literal["auto", "cpu", "cuda"]

# Beyond four threads a batch of small pictures gains little; decoding needs the other cores.
_MOST_DEFAULT_THREADS = 4


def usable_cores() -> int:
    """Return the cores this process may use; in a container that can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    return options, used


def session_providers(device: Device) -> list[Any]:
    """Return the ONNX Runtime providers for ``device``.

    Raises:
        DeviceError: ``cuda`` was asked for where it cannot work.

    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device {device!r} is unknown; expected auto, cpu or cuda.")
    cuda = device != "cpu" and _cuda_usable()
    if device == "cuda" and not cuda:
        raise DeviceError(
            "CUDA was asked for, but there is no NVIDIA driver or no ONNX Runtime with CUDA here; use --device cpu, "
            "or install the driver and '<checkout or wheel of deep-ranking>[cuda]'."
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]


@functools.cache
def _cuda_usable() -> bool:
    """Tell whether asking for CUDA makes sense; ONNX Runtime itself claims it even where there is no GPU."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return bool(driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value)
    except OSError:
        return False
