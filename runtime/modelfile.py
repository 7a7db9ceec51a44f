"""The model file (Contract 2): opening an untrusted one.

One ONNX file: input ``image`` uint8 ``[n, S, S, 3]``, output ``embedding`` float32 ``[n, d]`` of
unit rows, and all other facts that a box needs as JSON under one metadata key.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .devices import Deadline, Device, limit_memory, session_options, session_providers
from .errors import DeviceError, ModelFileError
from .files import NotRegularError, open_regular
from .model.metadata import METADATA_KEY, SCHEMA, ModelInfo
from .model.onnx_limits import check_records
from .text import display_path, first_line, printable

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["INPUT_NAME", "METADATA_KEY", "OUTPUT_NAME", "SCHEMA", "ModelInfo", "OpenModel", "open_again", "open_model"]

INPUT_NAME = "image"
OUTPUT_NAME = "embedding"

# The limit of protocol buffers, and so of ONNX files without side files.
_MAX_BYTES = 2**31 - 1
# Damaged files fail at once, and 2 GB open in seconds; CUDA from a cold disk is slowest.
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
        device: ``auto`` takes a working GPU, else the CPU.
        threads: for the CPU; default: the usable cores, at most 4.
        alongside: called in a thread while ONNX Runtime builds the session without the GIL.

    Raises:
        ModelFileError: missing, too large, damaged, without our metadata, of a newer schema or
            another shape.
        DeviceError: ``cuda`` was requested but cannot be used.

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
    # ONNX Runtime returns the file's metadata and names unchecked
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{display_path(path)} has text that is not UTF-8 ({error.reason}).") from None
    return OpenModel(path, reading.sha256(), info, session, used)


def open_again(model: OpenModel, *, threads: int) -> OpenModel:
    """Open the same file again on the CPU, in a session with another number of threads.

    Raises:
        ModelFileError: the file has changed.

    """
    again = open_model(model.path, device="cpu", threads=threads)
    if again.sha256 != model.sha256:
        raise ModelFileError(f"{display_path(model.path)} has changed since it was opened; start again.")
    return again


class _Reading(threading.Thread):
    """Reads a model file while ONNX Runtime is imported; hashes it while the session is built."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._read = threading.Event()
        self._data: bytes | Exception = b""
        self._sha256 = ""
        self.start()

    def run(self) -> None:
        """Read, then hash; neither holds the GIL."""
        try:
            self._data = _read(self._path)
        except Exception as error:  # raised in the thread that waits for the bytes
            self._data = error
            return
        finally:
            self._read.set()
        self._sha256 = hashlib.sha256(self._data).hexdigest()

    def data(self) -> bytes:
        """Wait for the bytes and return them, or raise the error of reading."""
        self._read.wait()
        if isinstance(self._data, Exception):
            raise self._data
        return self._data

    def sha256(self) -> str:
        """Wait for the hex sha256 and return it."""
        self.join()
        return self._sha256


def _read(path: Path) -> bytes:
    try:
        with open_regular(path, follow_links=True) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_BYTES:
                raise ModelFileError(
                    f"{display_path(path)} has {size:,} bytes; an ONNX file has at most {_MAX_BYTES:,}. "
                    "Export the model again."
                )
            return file.read(size)
    except FileNotFoundError:
        raise ModelFileError(
            f"{display_path(path)} does not exist; expected a model file. Make one with deeprank-export."
        ) from None
    except NotRegularError as error:
        raise ModelFileError(f"{display_path(path)} is a {error.kind}; expected an ONNX file.") from None
    except OSError as error:
        raise ModelFileError(f"{display_path(path)} cannot be read ({error.strerror}).") from None
    except ValueError as error:  # a NUL in the name
        raise ModelFileError(f"{display_path(path)} cannot be read ({error}).") from None


def _session(
    path: Path, reading: _Reading, device: Device, threads: int | None, alongside: Callable[[], object] | None
) -> tuple[ort.InferenceSession, int]:
    import onnxruntime as ort

    data = reading.data()
    options, used = session_options(threads)
    providers = session_providers(device)
    # A model read from bytes could name a file of the working directory as its weights. The empty
    # folder has no files.
    with tempfile.TemporaryDirectory(prefix="deeprank-") as empty:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
        deadline = Deadline(_OPENING_SECONDS, lambda: options.set_load_cancellation_flag(True))
        try:
            overhead = check_records(data)
            if providers == ["CPUExecutionProvider"]:
                limit_memory(options, len(data), overhead)
            with deadline, _calling(alongside):
                session = ort.InferenceSession(
                    data,
                    options,
                    providers=providers,
                    # From CUDA to the CPU. On the CPU it would only retry, and say so on stdout.
                    enable_fallback=len(providers) > 1,
                    read_config_from_model=False,
                )
        except Exception as error:  # ONNX Runtime raises a dozen kinds, all from C++
            why = f"it took more than {_OPENING_SECONDS:.0f} s" if deadline.passed else first_line(error)
            raise ModelFileError(
                f"{display_path(path)} is not an ONNX model that can be opened ({why}). "
                "Expected a file made by deeprank-export, whole and undamaged."
            ) from None
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError("CUDA was requested, but ONNX Runtime could not start it; use --device cpu.")
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


def _check_shapes(session: ort.InferenceSession, info: ModelInfo) -> None:
    side, dim = info.picture.size, info.embedding_dim
    inputs = [(i.name, i.type, i.shape) for i in session.get_inputs()]
    outputs = [(o.name, o.type, o.shape) for o in session.get_outputs()]
    if not (
        len(inputs) == 1
        and inputs[0][:2] == (INPUT_NAME, "tensor(uint8)")
        and _is_batch_of(inputs[0][2], [side, side, 3])
    ):
        raise ModelFileError(
            f"the input {_describe(inputs)}; expected one, {INPUT_NAME!r}, uint8 [n, {side}, {side}, 3]"
            + (", such as the file beside this float form" if [i[1] for i in inputs] == ["tensor(float)"] else "")
        )
    if not (
        len(outputs) == 1 and outputs[0][:2] == (OUTPUT_NAME, "tensor(float)") and _is_batch_of(outputs[0][2], [dim])
    ):
        raise ModelFileError(f"the output {_describe(outputs)}; expected one, {OUTPUT_NAME!r}, float32 [n, {dim}]")


def _is_batch_of(shape: list[int | str | None], rest: list[int]) -> bool:
    return len(shape) == 1 + len(rest) and not isinstance(shape[0], int) and list(shape[1:]) == rest


def _describe(values: list[tuple[str, str, list[Any]]]) -> str:
    return printable(", ".join(f"{name!r} {kind} {shape}" for name, kind, shape in values[:4]))[:300]
