"""The model file (Contract 2): what its metadata says, and how an untrusted one is opened.

One ONNX file: input ``image`` uint8 ``[n, S, S, 3]``, output ``embedding`` float32 ``[n, d]`` of unit rows, and
everything else a box must know as JSON under one metadata key.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .devices import Deadline, Device, limit_memory, session_options, session_providers
from .errors import DeviceError, ModelFileError
from .images import RULE_VERSION, PictureRule
from .text import display_path, printable

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["INPUT_NAME", "METADATA_KEY", "OUTPUT_NAME", "SCHEMA", "ModelInfo", "OpenModel", "open_model"]

SCHEMA = 1
METADATA_KEY = "deeprank"
INPUT_NAME = "image"
OUTPUT_NAME = "embedding"
PRECISIONS = ("fp32", "fp16", "int8")

# Protocol buffers, and so ONNX files without side files, end here.
_MAX_BYTES = 2**31 - 1
_MAX_SIDE = 4096
_MAX_DIM = 65536
# Of the metadata: a hundred thousand class names fit, and reading it takes less than a second.
_MAX_TEXT = 8 * 2**20
_MAX_NESTED = 32
# Of the file: its version, producer, graph, opsets and metadata are a record each, a dozen in all.
_MAX_RECORDS = 1000
_FUNCTIONS = 25
# A damaged file is refused at once, and 2 GB are opened in seconds; starting CUDA from a cold disk takes the longest.
_OPENING_SECONDS = 60.0


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself; the JSON under ``METADATA_KEY``.

    ``training`` summarises the training data and options, ``metrics`` are those of the PyTorch reference,
    ``versions`` the software that made the file.
    """

    name: str
    embedding_dim: int
    picture: PictureRule
    backbone: str
    classes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    versions: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Return the JSON text that is stored in the file."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Read untrusted JSON, checking every type and range.

        Raises:
            ModelFileError: says which field holds what, and what was expected.

        """
        values = _json_object(text)
        schema = _field(values, "schema", int)
        if schema > SCHEMA:
            raise ModelFileError(
                f"metadata of schema {_shown(schema)}, newer than this version reads (up to {SCHEMA}); "
                "upgrade deep-ranking"
            )
        if schema < 1:
            raise ModelFileError(f"metadata of schema {_shown(schema)}; expected 1 to {SCHEMA}")
        return cls(
            name=_field(values, "name", str),
            embedding_dim=_bounded(values, "embedding_dim", _MAX_DIM),
            picture=_picture_rule(_field(values, "picture", dict)),
            backbone=_field(values, "backbone", str),
            classes=_strings("class names", _field(values, "classes", list)),
            training=_shallow(values, "training"),
            metrics=_shallow(values, "metrics"),
            precision=_one_of(values, "precision", PRECISIONS),
            versions=_versions(_field(values, "versions", dict)),
            schema=schema,
        )


@dataclass(frozen=True)
class OpenModel:
    """A checked model, ready to run."""

    path: Path
    sha256: str
    info: ModelInfo
    session: ort.InferenceSession
    threads: int


def open_model(path: str | Path, *, device: Device = "auto", threads: int | None = None) -> OpenModel:
    """Open an untrusted model file and check it against Contract 2.

    Args:
        path: an ONNX file written by ``deeprank-export``.
        device: ``auto`` takes a GPU where one works, and the CPU otherwise.
        threads: for the CPU; default: the usable cores, at most 4.

    Raises:
        ModelFileError: missing, too large, damaged, without our metadata, of a newer schema or another shape.
        DeviceError: ``cuda`` was asked for and cannot be used.

    """
    path = Path(path)
    reading = _Reading(path)
    session, used = _session(path, reading, device, threads)
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


def _session(path: Path, reading: _Reading, device: Device, threads: int | None) -> tuple[ort.InferenceSession, int]:
    import onnxruntime as ort

    data = reading.data()
    options, used = session_options(threads)
    providers = session_providers(device)
    if providers == ["CPUExecutionProvider"]:
        limit_memory(options)
    # A model read from bytes could name a file of the working directory as its weights; in an empty folder of our own
    # there is nothing to find.
    with tempfile.TemporaryDirectory(prefix="deeprank-") as empty:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
        deadline = Deadline(_OPENING_SECONDS, lambda: options.set_load_cancellation_flag(True))
        try:
            _check_records(data)
            with deadline:
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


def _check_records(data: bytes) -> None:
    """Walk over the file's outermost records, and refuse functions.

    ONNX Runtime follows each call of a function while it opens a file: of forty that each call the one before twice
    there is no end, and no deadline is looked at. Exported files have none. What is inside a record is its business.
    """
    place = 0
    for _ in range(_MAX_RECORDS):
        if place == len(data):
            return
        tag, place = _number(data, place)
        size, place = _number(data, place)
        if tag >> 3 == _FUNCTIONS:
            raise ModelFileError("it defines functions")
        if tag & 7 not in (0, 2) or tag >> 32:  # of more than 32 bits protocol buffers would drop some
            raise ModelFileError("it has records of a kind that ONNX does not know")
        if tag & 7 == 2:
            place += size
        if place > len(data):
            raise ModelFileError("it ends too early")
    raise ModelFileError(f"it has more than {_MAX_RECORDS} records")


def _number(data: bytes, place: int) -> tuple[int, int]:
    """Return a variable-length number of protocol buffers, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place == len(data):
            raise ModelFileError("it ends too early")
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ModelFileError("it has a number of more than ten bytes")


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


def _json_object(text: str) -> dict[str, Any]:
    if len(text) > _MAX_TEXT:
        raise ModelFileError(f"metadata of {len(text):,} characters; expected at most {_MAX_TEXT:,}")
    try:
        values = json.loads(text)
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair can be escaped, but never be written
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"metadata that is not JSON ({printable(str(error)[:200])})") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"metadata of type {type(values).__name__}; expected a JSON object")
    return values


def _field(values: Mapping[str, Any], key: str, kind: type) -> Any:
    value = values.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ModelFileError(f"metadata with {key!r} = {_shown(value)}; expected {kind.__name__}")
    return value


def _shown(value: object) -> str:
    if isinstance(value, dict | list):  # however deep
        return f"a {type(value).__name__}"
    return printable(repr(value)[:60])


def _shallow(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = cast(dict[str, Any], _field(values, key, dict))
    if _is_deeper(value, _MAX_NESTED):
        raise ModelFileError(f"metadata with {key!r} nested more than {_MAX_NESTED} deep")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def _bounded(values: Mapping[str, Any], key: str, largest: int) -> int:
    value = cast(int, _field(values, key, int))
    if not 1 <= value <= largest:
        raise ModelFileError(f"metadata with {key!r} = {_shown(value)}; expected 1 to {largest}")
    return value


def _one_of(values: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    value = _field(values, key, str)
    if value not in allowed:
        raise ModelFileError(f"metadata with {key!r} = {_shown(value)}; expected one of {', '.join(allowed)}")
    return value


def _strings(what: str, values: Iterable[Any]) -> tuple[str, ...]:
    found = tuple(values)
    if not all(isinstance(value, str) for value in found):
        raise ModelFileError(f"metadata with {what} that are not all text")
    return found


def _versions(values: dict[str, Any]) -> dict[str, str]:
    return dict(zip(values, _strings("versions", values.values()), strict=True))


def _picture_rule(values: dict[str, Any]) -> PictureRule:
    version = _field(values, "version", int)
    if version != RULE_VERSION:
        raise ModelFileError(
            f"picture rule {_shown(version)}; this version knows {RULE_VERSION}. Use the deep-ranking it needs"
        )
    return PictureRule(
        size=_bounded(values, "size", _MAX_SIDE),
        mode=_one_of(values, "mode", ("stretch", "crop")),
        filter=_one_of(values, "filter", ("bilinear",)),
        version=version,
    )
