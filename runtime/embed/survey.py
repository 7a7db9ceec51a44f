"""The pictures of a source: a folder that is walked, a bucket that is listed, or a Parquet listing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import formats
from ..data.labels import FolderLabels, is_split_layout, label_rule
from ..errors import DataError
from ..files import file_id, open_regular
from ..index.patterns import RootFilters
from ..index.root_labels import RootLabels, open_labels
from ..index.walk import FileEntry, walk
from ..parts.listing import is_inside, listing_schema
from ..parts.settings import EmbeddedSettings
from ..parts.storage import Storage, load_pyarrow, storage_errors
from ..text import display_path, printable

if TYPE_CHECKING:
    import pyarrow

__all__ = ["LISTED_LABELS", "Survey", "labels_of", "survey"]

# Stands for the rule of the labels: they are a column of the listing.
LISTED_LABELS = "listing"
# The columns that a Parquet listing may have, and whether they are text.
_COLUMNS = {"path": True, "label": True, "size": False, "mtime_ns": False}
_NOT_UTF8 = "its name is not UTF-8"


@dataclass
class Survey:
    """What a source holds.

    Attributes:
        files: path, size, mtime_ns, label and problem of each picture, by the listing's columns, sorted by path. The
            labels are those of a Parquet listing; otherwise they are added by :func:`labels_of`.
        unread: folders, relative, whose content is unknown because they cannot be read.
        left_out: number of pictures and folders that the filters leave out, and of keys that are no paths.
        has_labels: whether the source is a listing with labels.

    """

    files: pyarrow.Table
    unread: list[str] = field(default_factory=list)
    left_out: int = 0
    has_labels: bool = False

    @property
    def is_split(self) -> bool:
        """Whether the top folders of the pictures are splits."""
        rows = zip(self.files["path"].to_pylist(), self.files["problem"].to_pylist(), strict=True)
        return is_split_layout(path.partition("/")[0] for path, problem in rows if "/" in path and problem is None)


def survey(settings: EmbeddedSettings, out: Storage, may_be_empty: bool) -> Survey:
    """Find the pictures of a source.

    Args:
        settings: the source, its listing and its filters.
        out: the embedded folder, which is not looked into where it lies among the pictures.
        may_be_empty: a folder that does not exist counts as empty.

    Raises:
        DataError: the source does not exist, or its listing is not one.
        StorageError: it cannot be read.

    """
    filters = RootFilters(settings.include, settings.exclude)
    filters.check()
    if settings.listing is not None:
        return _listed(Storage(settings.listing), Storage(settings.source), filters)
    source = Storage(settings.source)
    if not source.is_there():
        if may_be_empty:
            return Survey(_table([]))
        raise DataError(f"{source.shown()} does not exist; expected a folder of pictures or a Parquet listing of them.")
    return _stored(source, filters) if source.path is None else _walked(source, filters, out)


def _walked(source: Storage, filters: RootFilters, out: Storage) -> Survey:
    """Walk a folder as a sync does."""
    assert source.path is not None
    if not source.path.is_dir():
        raise DataError(f"{source.shown()} is no folder; expected a folder of pictures or a Parquet listing of them.")
    skip = [file_id(out.path)] if out.path is not None and out.path.is_dir() else []
    walked = walk(os.fsencode(source.path), skip, filters)
    files = walked.files + [file for file in walked.doubtful if _is_picture(source, file)]
    rows: dict[bytes, tuple[int | None, int | None, str | None]]
    rows = {file.path: (file.size, file.mtime_ns, None) for file in files}
    rows |= {path: (None, None, reason) for path, reason in walked.problems if path}
    if b"" in walked.unread:
        raise DataError(f"{source.shown()} cannot be read; check its permissions.")
    named: dict[str, tuple[int | None, int | None, str | None]] = {}
    for path, (size, mtime_ns, problem) in sorted(rows.items(), key=lambda row: (not _is_utf8(row[0]), row[0])):
        name = os.fsdecode(path)
        if not _is_utf8(path):  # Parquet holds UTF-8 alone; another file may have the name that we show
            name, problem = display_path(path), _NOT_UTF8
            while name in named:
                name += "?"
        named[name] = size, mtime_ns, problem
    unread = [os.fsdecode(folder) if _is_utf8(folder) else display_path(folder) for folder in walked.unread]
    return Survey(
        _table((name, *row) for name, row in named.items()), unread, walked.left_out + walked.left_out_folders
    )


def _is_utf8(path: bytes) -> bool:
    try:
        return bool(path.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _is_picture(source: Storage, file: FileEntry) -> bool:
    assert source.path is not None
    try:
        with open_regular(os.path.join(os.fsencode(source.path), file.path), follow_links=True) as opened:  # noqa: PTH118
            return formats.format_of(opened.read(formats.HEAD_BYTES)) is not None
    except OSError:
        return False


def _stored(source: Storage, filters: RootFilters) -> Survey:
    """List a folder of object storage. A file without an extension is judged when it is read."""
    pa = load_pyarrow("A folder of embedded parts")
    selector = pa.fs.FileSelector(source.root, recursive=True)
    with storage_errors(source.shown(), "listed"):
        infos = source.filesystem.get_file_info(selector)
    rows, left_out = [], 0
    for info in infos:
        path = info.path[len(source.root) + 1 :]
        extension = os.path.splitext(path)[1].lower()  # noqa: PTH122
        is_candidate = extension in ("", *formats.EXTENSIONS) or filters.names(extension.encode())
        if not info.is_file or not is_candidate:
            continue
        if any(name.startswith(".") for name in path.split("/")):
            continue
        # a key such as a//b is no path of any disk
        if not is_inside(path) or not filters.takes(path.encode()) or _is_in_left_out_folder(path, filters):
            left_out += 1
            continue
        rows.append((path, info.size, info.mtime_ns, None))
    return Survey(_table(rows), left_out=left_out)


def _is_in_left_out_folder(path: str, filters: RootFilters) -> bool:
    folder = path.encode()
    while folder := folder.rpartition(b"/")[0]:
        if not filters.enters(folder):
            return True
    return False


def _table(rows: Iterable[tuple[str, int | None, int | None, str | None]]) -> pyarrow.Table:
    pa = load_pyarrow("A folder of embedded parts")
    names = ("path", "size", "mtime_ns", "problem")
    schema = pa.schema([listing_schema().field(name) for name in names])
    return _completed(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema))


def _completed(table: pyarrow.Table) -> pyarrow.Table:
    """Add the missing columns of a listing, and sort by path."""
    pa = load_pyarrow("A folder of embedded parts")
    for name in listing_schema().names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), _type(name)))
    return table.select(listing_schema().names).cast(listing_schema()).sort_by("path")


def _type(name: str) -> Any:
    return listing_schema().field(name).type


def _listed(listing: Storage, source: Storage, filters: RootFilters) -> Survey:
    """Read a Parquet listing: path[, label, size, mtime_ns]."""
    pa = load_pyarrow("A folder of embedded parts")
    with storage_errors(listing.shown(), "read"), listing.input("") as file:
        try:
            opened = pa.parquet.ParquetFile(file, pre_buffer=listing.path is None)
            wanted = [name for name in _COLUMNS if name in opened.schema_arrow.names]
            table = opened.read(wanted, use_threads=False)
            if any(
                pa.types.is_integer(table[name].type) == is_text for name, is_text in _COLUMNS.items() if name in wanted
            ):
                raise _no_listing(listing)
            table = table.cast(pa.schema([(name, _type(name)) for name in wanted]))
            table.validate(full=True)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            raise _no_listing(listing) from None
    if "path" not in wanted or table["path"].null_count:
        raise _no_listing(listing)
    paths = [_relative(path, source) for path in table["path"].to_pylist()]
    wrong = next((row for row, path in enumerate(paths) if not is_inside(path)), None)
    if wrong is not None:
        raise DataError(
            f"{listing.shown()} lists {printable(table['path'][wrong].as_py())!r}, which is no path below "
            f"{source.shown()}; name the folder where its paths begin with --root."
        )
    if len(set(paths)) < len(paths):
        double = Counter(paths).most_common(1)[0][0]
        raise DataError(f"{listing.shown()} lists {printable(double)!r} twice; expected every picture once.")
    table = table.set_column(table.column_names.index("path"), "path", pa.array(paths, pa.string()))
    if "label" in wanted:  # an empty label is none
        labels = pa.array([label or None for label in table["label"].to_pylist()], pa.string())
        table = table.set_column(table.column_names.index("label"), "label", labels)
    taken = pa.array([filters.takes(path.encode()) for path in paths], pa.bool_()) if filters else None
    kept = table if taken is None else table.filter(taken)
    return Survey(_completed(kept), left_out=len(table) - len(kept), has_labels="label" in wanted)


def _relative(path: str, source: Storage) -> str:
    return path.removeprefix(f"{source.uri.partition('?')[0]}/")


def _no_listing(listing: Storage) -> DataError:
    return DataError(
        f"{listing.shown()} is no listing of pictures; expected a Parquet file with the column path (text), and if you "
        "like label (text), size and mtime_ns (whole numbers)."
    )


def labels_of(settings: EmbeddedSettings, surveyed: Survey) -> pyarrow.Table:
    """Return the pictures with their labels.

    Raises:
        DataError: the table of labels is invalid or missing.

    """
    if settings.labels == LISTED_LABELS:
        return surveyed.files
    pa = load_pyarrow("A folder of embedded parts")
    label = _labeller(settings)
    labels = pa.array([label(path) for path in surveyed.files["path"].to_pylist()], pa.string())
    return surveyed.files.set_column(
        surveyed.files.column_names.index("label"), listing_schema().field("label"), labels
    )


def _labeller(settings: EmbeddedSettings) -> Callable[[str], str | None]:
    rule = label_rule(settings.labels)
    if rule is not None:
        return FolderLabels(rule, settings.splits).label
    table = open_labels(RootLabels("table", table=settings.labels), os.fsencode(settings.source))
    if table.is_lost:
        raise DataError(f"The table of labels {display_path(settings.labels)} is gone; put it back.")
    return lambda path: table.label(os.fsencode(path))
