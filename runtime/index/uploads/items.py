"""Adding and removing uploaded pictures: the file first, then its row."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import formats
from ...errors import DeepRankError, IndexStateError, PictureError, QueryError
from ...files import NotRegularError
from ...images import opened_picture
from ...scan import are_unit
from ...text import display_path, printable
from ..database.records import Item
from ..database.store import Store, Vectors
from ..database.writer import Writer, locked, open_writer, writing
from ..graph_update import update_graph
from ..layout import UPLOADS, disk_errors
from .store import delete_unused, problem_of, put_file, uploads_of

__all__ = ["Added", "Removed", "Upload", "add_uploads", "remove_items", "take_out"]

# By picture format.
_EXTENSIONS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "GIF": ".gif",
    "BMP": ".bmp",
    "DIB": ".dib",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "AVIF": ".avif",
    "HEIF": ".heif",
}


@dataclass(frozen=True)
class Upload:
    """A picture to add.

    Attributes:
        content: the bytes of its file, already decoded for embedding.
        vector: float32 ``[d]``, of unit length.
        label: any text but an empty one; None: no label.

    """

    content: bytes
    vector: Vectors
    label: str | None = None


@dataclass(frozen=True)
class Added:
    """The result of an upload.

    Attributes:
        id: of the item.
        relative: its path under the uploads' root: the hash of its content, and an extension.
        created: False: these bytes were already there.
        label: of the item; an existing item keeps its label.

    """

    id: int
    relative: str
    created: bool
    label: str | None


@dataclass(frozen=True)
class _Checked:
    """A validated upload with its file name."""

    content: bytes
    sha256: bytes
    name: str
    vector: Vectors
    label: str | None


def add_uploads(index: str | Path, uploads: Sequence[Upload], *, model_sha256: str) -> list[Added]:
    """Add pictures to an index in one transaction: all of them or, after an error, none.

    Each file is written durably to the index folder before its row is committed: a killed process
    leaves at most a file without a row, which ``compact`` deletes. Bytes that were uploaded before
    are not added again, under any label; if their file was lost or damaged, it is restored.

    Args:
        index: the index folder.
        uploads: the pictures.
        model_sha256: hex, of the model that made the vectors.

    Returns:
        The result of each, in order.

    Raises:
        PictureError: one is not a picture of a supported format.
        QueryError: a label or a vector is invalid.
        IndexStateError: there is no index, it has another model, or cannot be written.
        IndexLockedError: another process is writing to it.
        IndexDamagedError: its database is damaged.

    """
    folder = Path(index)
    checked = [_check(upload) for upload in uploads]
    Store.open(folder).close()  # without an index, locking would create its folder
    with locked(folder), disk_errors(folder):
        try:
            with open_writer(folder) as writer:
                _check_model(writer, checked, model_sha256)
                added = _Adding(writer).add_all(checked)
                writer.commit()
                update_graph(writer)
        except BaseException:
            # Committed or not: files without a row are deleted.
            with contextlib.suppress(DeepRankError):
                delete_unused(folder, [os.fsencode(each.name) for each in checked])
            raise
    return added


class _Adding:
    """One call, which holds the lock."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._root = writer.uploads_root()

    def add_all(self, uploads: Sequence[_Checked]) -> list[Added]:
        return [self._add(upload) for upload in uploads]

    def _add(self, upload: _Checked) -> Added:
        item = self._known(upload.sha256)
        if item is not None:
            self._mend(item, upload)
            return Added(item.id, os.fsdecode(item.path), False, item.label)
        if self._root is None:
            self._root = self._writer.add_root(os.fsencode(UPLOADS))
        status = put_file(self._writer.folder, upload.name, upload.content)
        row = Item(
            0,
            self._root,
            os.fsencode(upload.name),
            upload.label,
            len(upload.content),
            status.st_mtime_ns,
            upload.sha256,
            formats.DECODING_VERSION,
        )
        return Added(self._writer.add(row, upload.vector.tobytes()), upload.name, True, upload.label)

    def _known(self, sha256: bytes) -> Item | None:
        items = self._writer.items(self._writer.ids_of_content(sha256)).values()
        return next((item for item in items if item.root == self._root), None)

    def _mend(self, item: Item, upload: _Checked) -> None:
        """Restore the file of an item that was uploaded before."""
        path = uploads_of(self._writer.folder) / os.fsdecode(item.path)
        with contextlib.suppress(NotRegularError):  # a link is replaced
            if problem_of(path, item.sha256) is None:
                return
        put_file(self._writer.folder, path.name, upload.content)
        os.utime(path, ns=(item.mtime_ns, item.mtime_ns))


def _check(upload: Upload) -> _Checked:
    digest = hashlib.sha256(upload.content)
    name = digest.hexdigest() + _extension(upload.content)
    return _Checked(upload.content, digest.digest(), name, _checked_vector(upload.vector), _checked_label(upload.label))


def _extension(content: bytes) -> str:
    """Return the file extension of the picture's actual format; the client's name is ignored."""
    with opened_picture(io.BytesIO(content), "the picture") as image:
        extension = _EXTENSIONS.get(image.format or "")
    if extension is None:
        raise PictureError(f"The picture is of the format {printable(str(image.format))}, which is not supported.")
    return extension


def _checked_vector(vector: Vectors) -> Vectors:
    array = np.asarray(vector)
    if array.ndim != 1 or array.dtype.kind != "f" or not are_unit(array[None]).all():
        raise QueryError(
            f"The vector of an upload is {array.dtype} {list(array.shape)}; expected float32 [d], of unit length."
        )
    return array.astype("<f4")


def _checked_label(label: str | None) -> str | None:
    """Return the label if it can be read back from the database and stored in an export."""
    try:
        if label is None or ("\0" not in label and label and os.fsdecode(os.fsencode(label)) == label):
            return label
    except UnicodeEncodeError:
        pass
    raise QueryError(
        f"The label {printable(label or '')!r} cannot be kept; expected text that is not empty and holds no zero byte."
    )


def _check_model(writer: Writer, uploads: Sequence[_Checked], model_sha256: str) -> None:
    meta = writer.meta()
    if meta.model_sha256 != model_sha256:
        raise IndexStateError(
            f"{display_path(writer.folder)} has another model (sha256 {meta.model_sha256[:12]}…) than the "
            f"uploads were embedded with ({printable(model_sha256[:12])}…); open the index again and embed them "
            "with its own."
        )
    other = next((upload for upload in uploads if len(upload.vector) != meta.dim), None)
    if other is not None:
        raise QueryError(
            f"The vector of an upload has {len(other.vector)} numbers; this index holds vectors of {meta.dim}."
        )


@dataclass(frozen=True)
class Removed:
    """The result for one item.

    Attributes:
        id: as given.
        found: whether the index had it.
        file_deleted: whether it was an upload whose file is now deleted. Synced files stay.

    """

    id: int
    found: bool
    file_deleted: bool


def remove_items(index: str | Path, ids: Sequence[int], contents: Sequence[bytes] | None = None) -> list[Removed]:
    """Remove items from an index in one transaction, and delete the files of uploads.

    A synced file stays, and its next sync restores it. Files are deleted after the commit: a killed
    process leaves at most a file without a row, which ``compact`` deletes.

    Args:
        index: the index folder.
        ids: of the items; unknown ids are reported.
        contents: sha256 of each file, 32 bytes; an item with other content counts as missing. After
            re-embedding, or a copy over this index, an id may belong to another picture. None: any
            content.

    Returns:
        The result for each, in order.

    Raises:
        IndexStateError: there is no index, or it cannot be written.
        IndexLockedError: another process is writing to it.
        IndexDamagedError: its database is damaged.

    """
    folder = Path(index)
    Store.open(folder).close()  # without an index, locking would create its folder
    with writing(folder) as writer, disk_errors(folder):
        last = writer.meta().last_id
        items_by_id = {number: writer.item_with(number) for number in set(ids) if 0 < number <= last}
        for number, content in zip(ids, contents or (), strict=contents is not None):
            item = items_by_id.get(number)
            if item is not None and item.sha256 != content:
                items_by_id[number] = None
        items = [item for item in items_by_id.values() if item is not None]
        deleted = take_out(writer, items)
        if items:
            update_graph(writer)
    return [_removed(number, items_by_id.get(number), deleted) for number in ids]


def take_out(writer: Writer, items: Collection[Item], roots: Collection[int] = ()) -> set[int]:
    """Remove items, forget roots, commit, and delete upload files; return the ids with a file."""
    uploads = writer.uploads_root()
    writer.remove(item.id for item in items)
    for root in roots:
        writer.forget_root(root)
    writer.commit()
    names = {item.path: item.id for item in items if item.root == uploads}
    return {names[name] for name in delete_unused(writer.folder, names)} if names else set()


def _removed(number: int, item: Item | None, deleted: set[int]) -> Removed:
    return Removed(number, item is not None, number in deleted)
