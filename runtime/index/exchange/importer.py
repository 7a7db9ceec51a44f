"""Import of an untrusted file, npz or Parquet by its suffix, into a new index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ...console import to_paste
from ...errors import DataError, IndexStateError
from ...files import NotRegularError, open_regular
from ...model.pretrained import FORMER_MODELS, find_matching_model, find_model
from ...modelfile import open_model
from ...progress import StartProgress, start_nothing
from ...scan import are_unit
from ...text import display_path
from ..database.store import Vectors
from ..database.writer import Writer, open_writer
from ..folder import bytes_in, check_free, install_model, placed_folder
from ..graph_update import update_graph
from ..layout import PRIVATE, SHARED, UPLOADS
from ..uploads.store import carry_uploads
from .content import Columns, Content, check_content
from .description import Description
from .npz_file import NpzReader
from .parquet_file import PARQUET, ParquetReader

__all__ = ["ImportReport", "import_index"]

_ROWS_AT_A_TIME = 4096
_COMMIT_ROWS = 16 * _ROWS_AT_A_TIME


class Reader(Protocol):
    """Reads a file of one of the formats. Every method raises DataError if it is not an export."""

    def error(self, what: str) -> DataError:
        """Return the error for the file; ``what`` is the predicate of its sentence."""

    def describe(self) -> Description:
        """Return the description of the index."""

    def columns(self) -> Columns:
        """Return everything but the vectors, as it was read."""

    def vectors(self, rows: int) -> Iterator[Vectors]:
        """Yield the vectors in parts of at most ``rows``: float32 ``[c, d]``."""


@dataclass(frozen=True)
class ImportReport:
    """The new index, as ``--json`` prints it.

    Attributes:
        items: number of pictures.
        bytes: of the new index.
        roots: the synced folders, as they were where the file was made.
        remarks: what a user should know.

    """

    items: int
    bytes: int
    roots: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def import_index(
    source: str | Path,
    index: str | Path,
    *,
    model: str | Path | None = None,
    shared: bool = False,
    progress: StartProgress = start_nothing,
) -> ImportReport:
    """Make a new index from an exported one: the same rows, ids and vectors, so the same answers; the graph is built.

    The file is not trusted: every number, name and vector is checked before it is believed. The index gets its name
    when it is complete and durable. It holds no pictures; those of uploads are copied where they still lie where they
    lay, with the content that they had.

    Args:
        source: a file that an export has written.
        index: the new index: a new name or an empty folder.
        model: the one that the vectors were made with; default: ``./model.onnx`` or a bundled one, by the
            sha256 in the file.
        shared: let the group read the index, which is its user's alone otherwise.
        progress: told how it goes on.

    Raises:
        DataError: the file is damaged, or is not what an export writes.
        IndexStateError: the model is another one, or the index exists or cannot be written.
        ModelFileError: the model cannot be read.

    """
    path, folder = Path(source), Path(index)
    check_free(folder)
    with _open_file(path) as opened:
        file: Reader = (ParquetReader if path.suffix.lower() == PARQUET else NpzReader)(opened, path)
        described = file.describe()
        chosen = _find_model(path, described, model)
        content = check_content(file.columns(), described, file.error)
        permissions = SHARED if shared else PRIVATE
        with placed_folder(folder, permissions) as making:
            install_model(making, chosen, described.model_sha256, described.dim, permissions)
            with open_writer(making) as writer:
                _fill(writer, file, described, content, progress)
                reason = update_graph(writer, progress)
            without = [] if content.uploads is None else carry_uploads(_place_of_uploads(content), making)
            size = bytes_in(making)
    remarks = (*_remarks(folder, content.synced, reason), *without)
    return ImportReport(len(content), size, content.synced, remarks)


def _open_file(path: Path) -> IO[bytes]:
    try:
        return open_regular(path, follow_links=True)  # a pipe would block
    except NotRegularError:
        raise DataError(f"{display_path(path)} is not a regular file; expected an export.") from None
    except OSError as error:
        raise DataError(f"{display_path(path)} cannot be read ({error.strerror}); expected an export.") from None


def _place_of_uploads(content: Content) -> Path:
    assert content.uploads is not None
    return Path(os.fsdecode(content.roots[content.uploads]))


def _remarks(folder: Path, roots: tuple[str, ...], reason: str | None) -> tuple[str, ...]:
    remarks = [] if reason is None else [f"There is no graph: {reason}. Searches scan instead."]
    missing = [root for root in roots if not Path(root).is_dir()]
    if missing:
        remarks.append(
            f"{display_path(missing[0])} does not exist here; if its pictures are elsewhere, name their folder with: "
            + to_paste("deeprank-index", "sync", "--root", f"{missing[0]}=NEW", "--index", folder)
        )
    return tuple(remarks)


def _find_model(path: Path, described: Description, named: str | Path | None) -> Path:
    """Return the model that made the vectors."""
    name = f" ({display_path(described.model_name)})" if described.model_name else ""
    expected = f"{described.model_sha256[:12]}…{name}"
    chosen = find_model(named) if named is not None else find_matching_model(described.model_sha256)
    former = FORMER_MODELS.get(described.model_sha256)
    if chosen is None:
        remedy = "name it with --model" if former is None else _how_to_get(former)
        raise IndexStateError(
            f"{display_path(path)} holds vectors of the model with sha256 {expected}, which is neither ./model.onnx "
            f"nor bundled with deeprank; {remedy}."
        )
    opened = open_model(chosen, device="cpu")
    if opened.sha256 != described.model_sha256:
        remedy = "Name the right one with --model" if former is None else f"The right one: {_how_to_get(former)}"
        raise IndexStateError(
            f"{display_path(path)} holds vectors of the model with sha256 {expected}, but {display_path(chosen)} "
            f"is another model ({opened.sha256[:12]}…, {display_path(opened.info.name)}); vectors of two models cannot "
            f"be compared. {remedy}."
        )
    if opened.info.embedding_dim != described.dim:
        raise IndexStateError(
            f"{display_path(path)} holds vectors of {described.dim} numbers, but its model gives "
            f"{opened.info.embedding_dim}; expected a file made by deeprank-index export."
        )
    return chosen


def _how_to_get(former: str) -> str:
    """Return what to do about a model that earlier versions bundled."""
    return (
        f"it was bundled earlier: take {former}, from deeprank/models/pretrained in that version's wheel or from the "
        "git history of models/pretrained, and name it with --model"
    )


def _fill(writer: Writer, file: Reader, described: Description, content: Content, progress: StartProgress) -> None:
    for root, path in content.roots.items():
        writer.add_root(os.fsencode(UPLOADS) if root == content.uploads else path, root)
        if root in described.filters:
            writer.set_filters(root, described.filters[root])
        if root in described.labelling:
            writer.set_labelling(root, described.labelling[root])
    writer.reserve_ids(described.last_id)
    advance = progress("importing", len(content))
    row = 0
    for vectors in _checked_vectors(file):
        for vector in vectors:
            writer.restore(content.item(row), vector.tobytes())
            row += 1
        advance(len(vectors))
        if row % _COMMIT_ROWS == 0:
            writer.commit()
    writer.commit()


def _checked_vectors(file: Reader) -> Iterator[Vectors]:
    for vectors in file.vectors(_ROWS_AT_A_TIME):
        if not are_unit(vectors).all():
            raise file.error("holds a vector that is not finite or not of unit length")
        yield vectors
