"""The start of a taught model: its file before any head, and the head that it has, if any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import ExportError, MissingExtraError, ModelFileError
from ...runtime.files import open_regular
from ...runtime.model.metadata import ModelInfo
from ...runtime.model.taught import PREVIOUS, TAUGHT
from ...runtime.modelfile import METADATA_KEY, open_model
from ...runtime.text import display_path
from ...train.ratings.head import Head
from ..adopt.graph import to_bytes
from ..formats.onnx import START_KEY
from .graph import append_head, strip_head

if TYPE_CHECKING:
    import onnx

__all__ = ["Start", "read_start", "taught_info"]


@dataclass(frozen=True)
class Start:
    """A model before any head.

    Attributes:
        content: of its file.
        graph: of that file; shared, so never changed.
        info: its metadata.
        head: the head that was taken off to get it; None: there was none.

    """

    content: bytes
    graph: onnx.ModelProto
    info: ModelInfo
    head: Head | None

    @property
    def sha256(self) -> str:
        """Hex sha256 of its file, as it is written again: other programs may write the same graph otherwise."""
        return hashlib.sha256(to_bytes(self.graph)).hexdigest()

    def with_head(self, head: Head) -> onnx.ModelProto:
        """Return the graph with a head, which can be taken off again; see :func:`~.graph.append_head`."""
        model = append_head(self.graph, head)
        beside = {
            "doc_string": model.doc_string,
            "properties": [[entry.key, entry.value] for entry in model.metadata_props],
        }
        model.metadata_props.add(key=START_KEY, value=json.dumps(beside, ensure_ascii=False))
        return model


def read_start(path: Path) -> Start:
    """Read an untrusted model file, taught or not, and take its head off.

    A file that :mod:`deeprank` taught gives its start byte for byte.

    Raises:
        ModelFileError: see :func:`~...runtime.modelfile.open_model`.
        ExportError: it was taught, but its head cannot be taken off, or what is left is not the start that its
            metadata state; or it changed while it was read.
        MissingExtraError: the onnx package is missing.

    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("A head on a model", "train") from None

    opened = open_model(path, device="cpu")  # checks all of it
    with open_regular(path, follow_links=True) as file:
        content = file.read()
    if hashlib.sha256(content).hexdigest() != opened.sha256:
        raise ExportError(f"{display_path(path)} changed while it was read; run the command again.")
    model = onnx.ModelProto.FromString(content)
    taught = opened.info.training.get(TAUGHT)
    if taught is None:
        return Start(content, model, opened.info, None)
    try:
        graph, head = strip_head(model, _strength(taught))
        info = _restore_beside(graph)
        if info.embedding_dim != head.start_dim:
            raise ExportError(f"Its start states {info.embedding_dim:,} numbers a vector, its head {head.start_dim:,}.")
        start = Start(to_bytes(graph), graph, info, head)
        if taught.get("start_sha256") != start.sha256:
            raise ExportError("What is left is not the start that its metadata state: it was damaged or changed.")
    except (ExportError, ModelFileError) as error:
        raise ExportError(
            f"{display_path(path)} was taught, and its head cannot be taken off. {error} Embed the pictures again with "
            "the model that it started from (deeprank-index sync --reembed --model START)."
        ) from None
    return start


def _strength(taught: object) -> float:
    """Return the strength of the head, as the metadata state it.

    Raises:
        ExportError: they do not.

    """
    strength = taught.get("strength") if isinstance(taught, Mapping) else None
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength < 1:
        raise ExportError("Its metadata do not state a strength from 0 to below 1.")
    return float(strength)


def _restore_beside(model: onnx.ModelProto) -> ModelInfo:
    """Give a graph again what the file of the start said beside it, and return the metadata of the start.

    Raises:
        ExportError: the file of the head does not state it.
        ModelFileError: these metadata are not allowed.

    """
    texts = [entry.value for entry in model.metadata_props if entry.key == START_KEY]
    try:
        beside = json.loads(texts[0])
        doc_string, properties = beside["doc_string"], dict(beside["properties"])
        if not isinstance(doc_string, str) or not all(isinstance(text, str) for text in properties.values()):
            raise TypeError
        text = properties[METADATA_KEY]
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        raise ExportError("It does not describe its start.") from None
    del model.metadata_props[:]
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    if doc_string:
        model.doc_string = doc_string
    else:
        model.ClearField("doc_string")
    return ModelInfo.from_json(text)


def taught_info(
    start: Start,
    head: Head,
    *,
    unrelated_distance: float | None = None,
    previous: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> ModelInfo:
    """Return the metadata of a start with a head.

    Args:
        start: the model.
        head: what is appended.
        unrelated_distance: measured with the head; None: not measured.
        previous: hex sha256 of the model that the index had before.
        about: what else the file states of its ratings, as plain values.

    """
    info = start.info
    taught = {**head.taught(), "start_sha256": start.sha256}
    taught |= {} if previous is None else {PREVIOUS: previous}
    taught |= about or {}
    return replace(
        info,
        name=f"{info.name}, taught",
        embedding_dim=head.dim,
        training={**info.training, TAUGHT: taught},
        unrelated_distance=unrelated_distance,
    )
