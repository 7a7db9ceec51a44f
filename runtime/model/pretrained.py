"""The bundled model, those of earlier versions, the default model, and the one with a given sha256."""

from __future__ import annotations

import atexit
import functools
import importlib.resources
import os
import tempfile
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from ..devices import fast_int8
from ..errors import EvaluationError, ModelFileError
from ..files import file_sha256
from ..modelfile import ModelInfo
from ..text import display_path, printable

__all__ = [
    "FORMER_MODELS",
    "LOCAL_MODEL",
    "PRETRAINED",
    "describe_model",
    "find_matching_model",
    "find_model",
    "find_reference",
    "is_shipped",
    "is_superseded",
    "pretrained_model",
    "pretrained_reference",
]

# Stands for the shipped files as the path of a model or of a reference sample.
PRETRAINED = "pretrained"
_WORDS: Mapping[str, Literal["auto", "fp32", "int8"]] = {
    PRETRAINED: "auto",
    f"{PRETRAINED}-fp32": "fp32",
    f"{PRETRAINED}-int8": "int8",
}
_FP32, _INT8 = "model.onnx", "model.int8.onnx"
# Written by deeprank-export; in the current folder it takes precedence over the shipped one.
LOCAL_MODEL = Path("model.onnx")

# Models that earlier versions shipped, by hex sha256: where they are still found.
FORMER_MODELS: Mapping[str, str] = {
    "a402cbfd4d8512b70c10c27c5f7e4c6e9c1f45a60b9cc0cd6c28df45987f6b65": "model.onnx of deeprank 0.1.0",
    "78d59ae750b71178da29cdee943f9c4c10b587c6f7f1479b094a0b407a5469ec": "model.int8.onnx of deeprank 0.1.0",
}

_PACKAGE = "deeprank.models"
_HOW = "name one with --model, make one with deeprank-export, or install deeprank again from a complete wheel"


def pretrained_model(precision: Literal["auto", "fp32", "int8"] = "auto") -> Path | None:
    """Return the model that ships with deeprank; None if this installation has none.

    Args:
        precision: ``auto`` takes int8 on processors that run it faster (docs/results.md), else
            fp32. Their rankings are alike but not identical: an index always uses the model it was
            built with.

    Raises:
        ModelFileError: deeprank runs from a zip, and there is no space to unpack the model.

    """
    int8 = precision == "int8" or (precision == "auto" and fast_int8())
    shipped = _shipped(_INT8) if int8 else None
    return shipped if shipped is not None or precision == "int8" else _shipped(_FP32)


def pretrained_reference() -> Path | None:
    """Return PyTorch's vectors of a sample, which prove that a box computes the same ones.

    Raises:
        ModelFileError: see :func:`pretrained_model`.

    """
    return _shipped("model.reference.npz")


def find_model(model: str | Path | None) -> Path:
    """Return the model to use: the named one, else ``./model.onnx``, else the shipped one.

    Args:
        model: a path, or the word ``pretrained`` for the shipped model, ``pretrained-fp32`` or
            ``pretrained-int8`` for one of its forms (a file of that name needs its full path).

    Raises:
        ModelFileError: the shipped model is requested, but this installation has none.

    """
    named = PRETRAINED if model is None else os.fspath(model)
    if named not in _WORDS:
        return Path(named)
    if model is None and LOCAL_MODEL.is_file():
        return LOCAL_MODEL
    shipped = pretrained_model(_WORDS[named])
    if shipped is not None:
        return shipped
    missing = "this installation of deeprank ships without a model"
    if model is None:
        raise ModelFileError(f"There is no {LOCAL_MODEL} in this folder, and {missing}; {_HOW}.")
    raise ModelFileError(f"{missing.capitalize()}; {_HOW}.")


def find_reference(reference: Path) -> Path:
    """Return the reference; the word ``pretrained`` stands for the sample of the shipped model.

    Raises:
        EvaluationError: that sample is requested, but this installation has none.
        ModelFileError: see :func:`pretrained_model`.

    """
    if reference != Path(PRETRAINED):
        return reference
    shipped = pretrained_reference()
    if shipped is None:
        raise EvaluationError(
            "This installation of deeprank ships without a reference sample; name the *.reference.npz of the model "
            "with --reference, or install deeprank again from a complete wheel."
        )
    return shipped


def describe_model(model: Path, info: ModelInfo) -> str:
    """Return words for the model in use: its path, or a description of the shipped model."""
    if not is_shipped(model):
        return f"the model {display_path(model)}"
    terms = f"; license {printable(info.license)}" if info.license else ""
    return (
        f"the model that ships with deeprank: {printable(info.name)}, {info.precision} ({info.embedding_dim} numbers "
        f"from {info.picture.size} x {info.picture.size} pixels{terms})"
    )


def is_shipped(model: Path) -> bool:
    """Return whether this is a file of the shipped model."""
    return model in (_shipped(_FP32), _shipped(_INT8))


def is_superseded(sha256: str) -> bool:
    """Return whether an earlier version shipped the model with this hex sha256, and this one ships another."""
    shipped = _shipped_models() if sha256 in FORMER_MODELS else []
    return bool(shipped) and not any(_is(path, sha256) for path in shipped)


def find_matching_model(sha256: str) -> Path | None:
    """Return ``./model.onnx`` or the shipped model with this hex sha256; None without a match."""
    return next((path for path in (LOCAL_MODEL, *_shipped_models()) if _is(path, sha256)), None)


def _is(path: Path, sha256: str) -> bool:
    try:
        return path.is_file() and file_sha256(path) == sha256
    except OSError:
        return False


def _shipped_models() -> list[Path]:
    try:
        models = [pretrained_model("fp32"), pretrained_model("int8")]
    except ModelFileError:  # no space to unpack them from a zip
        return []
    return [path for path in models if path is not None]


@functools.cache
def _shipped(name: str) -> Path | None:
    """Return one of the files in ``models/pretrained``; importing that package imports no torch."""
    try:
        resource = importlib.resources.files(_PACKAGE).joinpath(PRETRAINED, name)
    except ModuleNotFoundError:  # only the runtime is installed
        return None
    if not resource.is_file():
        return None
    if isinstance(resource, Path):
        return resource
    try:
        return _unpacked(resource, name)
    except OSError as error:
        raise ModelFileError(
            f"The {name} that ships with deeprank cannot be unpacked from the zip that deeprank runs from "
            f"({error.strerror or error}); check the space left for temporary files."
        ) from None


def _unpacked(resource: Traversable, name: str) -> Path:
    """Write a file of a zip into a temporary folder, deleted when the process ends.

    ``importlib.resources.as_file`` does not notice a full disk, and leaves a truncated file.
    """
    folder = tempfile.TemporaryDirectory(prefix="deeprank-")
    atexit.register(folder.cleanup)
    path = Path(folder.name, name)
    path.write_bytes(resource.read_bytes())
    return path
