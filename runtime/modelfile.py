"""The model file (Contract 2): how an untrusted one is opened.

One ONNX file: input ``image`` uint8 ``[n, S, S, 3]``, output ``embedding`` float32 ``[n, d]`` of unit rows, and
everything else a box must know as JSON under one metadata key.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .devices import Deadline, Device, limit_memory, session_options, session_providers
from .errors import DeviceError, ModelFileError
from .modelinfo import METADATA_KEY, SCHEMA, ModelInfo
from .records import check_records
from .text import display_path, printable

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["INPUT_NAME", "METADATA_KEY", "OUTPUT_NAME", "SCHEMA", "ModelInfo", "OpenModel", "open_again", "open_model"]

INPUT_NAME = "image"
OUTPUT_NAME = "embedding"

# Protocol buffers, and so ONNX files without side files, end here.
_MAX_BYTES = 2**31 - 1
# A damaged file is refused at once, and 2 GB are opened in seconds; starting CUDA from a cold disk takes the longest.
_OPENING_SECONDS = 60.0


@dataclass(frozen=True)
class OpenModel:
    """A checked model, ready to run."""

    path: Path
    sha256: str
    info: ModelInfo
    session: ort.InferenceSession
    threads: int


def open_model(
    path: str | Path,
    *,
    device: Device = "auto",
    threads: int | None = None,
    alongside: Callable[[], object] | None = None,
) -> OpenModel:
    """Open an untrusted model file and check it against Contract 2.

    Args:
        path: an ONNX file written by ``deeprank-export``.
        device: ``auto`` takes a GPU where one works, and the CPU otherwise.
        threads: for the CPU; default: the usable cores, at most 4.
        alongside: called in a thread while ONNX Runtime builds the session, without Python's lock.

    Raises:
        ModelFileError: missing, too large, damaged, without our metadata, of a newer schema or another shape.
        DeviceError: ``cuda`` was asked for and cannot be used.

    """
    path = Path(path)
    reading = _Reading(path)
    session, used = _session(path, reading, device, threads, alongside)
    try:
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ModelFileError(f"no {METADATA_KEY!r} metadata; expected a file made by deeprank-export")
        info = ModelInfo.from_json(text)
        _check_shapes(session, info)
    except ModelFileError as error:
        raise ModelFileError(f"{display_path(path)} has {error}.") from None
    except UnicodeDecodeError as error:  # ONNX Runtime hands metadata and names over as they are in the file
        raise ModelFileError(f"{display_path(path)} has text that is not UTF-8 ({error.reason}).") from None
    return OpenModel(path, reading.sha256(), info, session, used)


def open_again(model: OpenModel, *, threads: int) -> OpenModel:
    """Open the same file on the CPU once more, in a session with another number of threads.

    Raises:
        ModelFileError: it is another file by now.

    """
    again = open_model(model.path, device="cpu", threads=threads)
    if again.sha256 != model.sha256:
        raise ModelFileError(f"{display_path(model.path)} has changed since it was opened; start again.")
    return again


class _Reading(threading.Thread):
    """Reads a model file while ONNX Runtime is imported, and hashes it while the session is built."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._read = threading.Event()
        self._data: bytes | Exception = b""
        self._sha256 = ""
        self.start()

    def run(self) -> None:
        """Read, then hash; Python's lock is held during neither."""
        try:
            self._data = _read(self._path)
        except Exception as error:  # for the thread that waits for the bytes to raise
            self._data = error
            return
        finally:
            self._read.set()
        self._sha256 = hashlib.sha256(self._data).hexdigest()

    def data(self) -> bytes:
        """Return the bytes once they are there, or raise what reading them raised."""
        self._read.wait()
        if isinstance(self._data, Exception):
            raise self._data
        return self._data

    def sha256(self) -> str:
        """Return the hex sha256 once it is there."""
        self.join()
        return self._sha256


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=_open) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ModelFileError(f"{display_path(path)} is a pipe or a device; expected an ONNX file.")
            if found.st_size > _MAX_BYTES:
                raise ModelFileError(
                    f"{display_path(path)} has {found.st_size:,} bytes; an ONNX file has at most {_MAX_BYTES:,}. "
                    "Export the model again."
                )
            return file.read(found.st_size)
    except FileNotFoundError:
        raise ModelFileError(
            f"{display_path(path)} does not exist; expected a model file. Make one with deeprank-export."
        ) from None
    except IsADirectoryError:
        raise ModelFileError(f"{display_path(path)} is a folder; expected an ONNX file.") from None
    except OSError as error:
        raise ModelFileError(f"{display_path(path)} cannot be read ({error.strerror}).") from None
    except ValueError as error:  # a NUL in the name
        raise ModelFileError(f"{display_path(path)} cannot be read ({error}).") from None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to is waited for otherwise


def _session(
    path: Path, reading: _Reading, device: Device, threads: int | None, alongside: Callable[[], object] | None
) -> tuple[ort.InferenceSession, int]:
    import onnxruntime as ort

    data = reading.data()
    options, used = session_options(threads)
    providers = session_providers(device)
    # A model read from bytes could name a file of the working directory as its weights; in an empty folder of our own
    # there is nothing to find.
    with tempfile.TemporaryDirectory(prefix="deeprank-") as empty:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
        deadline = Deadline(_OPENING_SECONDS, lambda: options.set_load_cancellation_flag(True))
        try:
            beside = check_records(data)
            if providers == ["CPUExecutionProvider"]:
                limit_memory(options, len(data), beside)
            with deadline, _calling(alongside):
                session = ort.InferenceSession(
                    data,
                    options,
                    providers=providers,
                    # From CUDA to the CPU. On the CPU it tries the same once more, and says so on stdout.
                    enable_fallback=len(providers) > 1,
                    read_config_from_model=False,
                )
        except Exception as error:  # ONNX Runtime raises a dozen kinds of its own, all of them from C++
            why = f"it took more than {_OPENING_SECONDS:.0f} s" if deadline.passed else first_line(error)
            raise ModelFileError(
                f"{display_path(path)} is not an ONNX model that can be opened ({why}). "
                "Expected a file made by deeprank-export, whole and undamaged."
            ) from None
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError("CUDA was asked for, but ONNX Runtime could not start it; use --device cpu.")
    return session, used


@contextlib.contextmanager
def _calling(alongside: Callable[[], object] | None) -> Iterator[None]:
    if alongside is None:
        yield
        return
    thread = threading.Thread(target=alongside)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def first_line(error: Exception) -> str:
    """Return what ONNX Runtime says first, as one safe line."""
    lines = str(error).strip().splitlines()
    return printable(lines[0][:300]) if lines else type(error).__name__


def _check_shapes(session: ort.InferenceSession, info: ModelInfo) -> None:
    side, dim = info.picture.size, info.embedding_dim
    found_in = [(i.name, i.type, i.shape) for i in session.get_inputs()]
    found_out = [(o.name, o.type, o.shape) for o in session.get_outputs()]
    if not (
        len(found_in) == 1
        and found_in[0][:2] == (INPUT_NAME, "tensor(uint8)")
        and _is_batch_of(found_in[0][2], [side, side, 3])
    ):
        raise ModelFileError(
            f"the input {_describe(found_in)}; expected one, {INPUT_NAME!r}, uint8 [n, {side}, {side}, 3]"
        )
    if not (
        len(found_out) == 1
        and found_out[0][:2] == (OUTPUT_NAME, "tensor(float)")
        and _is_batch_of(found_out[0][2], [dim])
    ):
        raise ModelFileError(f"the output {_describe(found_out)}; expected one, {OUTPUT_NAME!r}, float32 [n, {dim}]")


def _is_batch_of(shape: list[int | str | None], rest: list[int]) -> bool:
    return len(shape) == 1 + len(rest) and not isinstance(shape[0], int) and list(shape[1:]) == rest


def _describe(values: list[tuple[str, str, list[Any]]]) -> str:
    return printable(", ".join(f"{name!r} {kind} {shape}" for name, kind, shape in values[:4]))[:300]
