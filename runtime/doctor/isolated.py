"""Functions run in a subprocess, where a crash or output is only a finding; and the probes run there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DeepRankError
from ..text import first_line, printable

__all__ = ["Outcome", "answer", "import_onnxruntime", "run_model", "search_small_graph", "try_apart"]

# Starting CUDA from a cold disk takes longest.
_SECONDS = 90.0
# Exit codes on Windows, where a process killed by an instruction has no signal.
_ILLEGAL_INSTRUCTION, _ACCESS_VIOLATION = 0xC000001D, 0xC0000005

# The child searches modules where the parent does; -P: never in the current folder.
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import answer; answer(*sys.argv[2:])"

_BATCH = 2
# hnswlib has kernels for multiples of 16, for multiples of 4, for remainders, and for small
# vectors.
_DIMS = (64, 20, 21, 3)


@dataclass(frozen=True)
class Outcome:
    """Result of a subprocess.

    Attributes:
        value: the returned value; None after a failure.
        failure: the reason, as the end of a sentence.
        died: the process crashed.
        illegal_instruction: it crashed by an instruction that this processor lacks.

    """

    value: Mapping[str, Any] | None = None
    failure: str = ""
    died: bool = False
    illegal_instruction: bool = False


def try_apart(attempt: Callable[..., Mapping[str, Any]], *arguments: str) -> Outcome:
    """Call a module's function in a subprocess.

    Args:
        attempt: an importable function that returns JSON values.
        arguments: of the function.

    """
    command = [sys.executable, "-P", "-c", _CHILD.format(module=__name__), json.dumps(sys.path)]
    command += [attempt.__module__, attempt.__name__, *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(failure=f"it did not end within {_SECONDS:.0f} s", died=True)
    except ValueError as error:  # a NUL in a name
        return Outcome(failure=str(error))
    if ended.returncode != 0:
        return _death(ended.returncode, ended.stderr)
    said = json.loads(ended.stdout.splitlines()[-1])
    return Outcome(said.get("value"), printable(said.get("failure", "")))


def answer(module: str, name: str, *arguments: str) -> None:
    """Call the function, print its result as the last line of stdout, and exit at once."""
    import importlib

    _leave_no_core()
    try:
        said = {"value": getattr(importlib.import_module(module), name)(*arguments)}
    except DeepRankError as error:
        said = {"failure": str(error)}
    except Exception as error:  # a broken library fails in any way it likes
        said = {"failure": first_line(error, named=True)}
    sys.stdout.flush()
    os.write(1, b"\n" + json.dumps(said).encode("ascii") + b"\n")
    os._exit(0)  # GPU libraries often crash at shutdown


def _leave_no_core() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _death(status: int, said: bytes) -> Outcome:
    if status < 0:
        return Outcome(
            failure=f"it was ended by {_signal_name(-status)}",
            died=True,
            illegal_instruction=-status == getattr(signal, "SIGILL", 0),
        )
    if status & 0xFFFFFFFF in (_ILLEGAL_INSTRUCTION, _ACCESS_VIOLATION):
        illegal = status & 0xFFFFFFFF == _ILLEGAL_INSTRUCTION
        what = "an illegal instruction" if illegal else "an access violation"
        return Outcome(failure=f"it was ended by {what}", died=True, illegal_instruction=illegal)
    lines = said.decode("utf-8", "replace").strip().splitlines()
    reason = f": {printable(lines[-1][:300])}" if lines else ""
    return Outcome(failure=f"it ended with status {status}{reason}", died=True)


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (an illegal instruction)" if name == "SIGILL" else name


CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_VECTORS, _QUERIES, _K = 300, 20, 5


def import_onnxruntime() -> dict[str, Any]:
    """Import ONNX Runtime and return its ``version`` and ``providers``."""
    import onnxruntime as ort

    return {"version": str(ort.__version__), "providers": list(ort.get_available_providers())}


def run_model(provider: str, model: str) -> dict[str, Any]:
    """Run a model file on a provider.

    Returns:
        the ``providers`` of its session, and the number of ``threads``.

    Raises:
        ModelFileError, DeviceError: see :func:`~..modelfile.open_model`.

    """
    from ..embedder import Embedder
    from ..modelfile import open_model

    if provider not in (CPU, CUDA):
        return _run_elsewhere(provider, model)
    opened = open_model(model, device="cuda" if provider == CUDA else "cpu")
    side = opened.info.picture.size
    Embedder(opened).embed_batch(_pictures(side))
    return {"providers": list(opened.session.get_providers()), "threads": opened.threads}


def _pictures(side: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (_BATCH, side, side, 3), dtype=np.uint8)


def _run_elsewhere(provider: str, model: str) -> dict[str, Any]:
    import onnxruntime as ort

    from ..devices import session_options
    from ..modelfile import INPUT_NAME, open_model

    if provider == TENSORRT:
        _load_tensorrt()
    opened = open_model(model, device="cpu")  # refuses unsafe files
    options, threads = session_options(None)
    session = ort.InferenceSession(opened.path.read_bytes(), options, providers=[provider], enable_fallback=False)
    side = opened.info.picture.size
    session.run(None, {INPUT_NAME: _pictures(side)})
    return {"providers": list(session.get_providers()), "threads": threads}


def _load_tensorrt() -> None:
    """Raise OSError if the library is missing; ONNX Runtime goes on without, after many seconds."""
    import ctypes

    ctypes.CDLL("nvinfer_10.dll" if sys.platform == "win32" else "libnvinfer.so.10")


def search_small_graph() -> dict[str, Any]:
    """Build and search small graphs of several dimensions.

    Returns:
        ``file``: of the extension module; ``recall``: share of the true nearest neighbours found,
        from 0 to 1, for the worst dimension.

    """
    from ..index.ann.hnsw import HnswBackend

    recall = min(_recall(HnswBackend(), dim) for dim in _DIMS)
    return {"file": sys.modules["hnswlib"].__file__, "recall": recall}


def _recall(backend: Any, dim: int) -> float:
    import numpy as np

    from ..metrics import neighbour_overlap

    draw = np.random.default_rng(dim)
    vectors = draw.normal(size=(_VECTORS, dim)).astype(np.float32)
    queries = draw.normal(size=(_QUERIES, dim)).astype(np.float32)
    index = backend.create(dim, _VECTORS)
    index.add(np.arange(_VECTORS), vectors)
    neighbours = index.search(queries, _K, threads=1)
    if neighbours is None:
        return 0.0
    exact = ((queries[:, None].astype(np.float64) - vectors[None]) ** 2).sum(axis=2).argsort(axis=1)[:, :_K]
    return float(neighbour_overlap(neighbours[0], exact))
