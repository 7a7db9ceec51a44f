"""Export of an index into one npz file."""

from __future__ import annotations

import array
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ... import __version__
from ...errors import DataError, ModelFileError
from ...files import placed
from ...modelfile import ModelInfo, open_model
from ...progress import StartProgress, start_nothing
from ...text import display_path, printable
from ..database.records import Item
from ..database.store import Ids, Store
from ..layout import MODEL
from ..search.filters import Labels
from .format import KIND, SCHEMA, ArchiveWriter, join_names

__all__ = ["ExportReport", "export_index"]


@dataclass(frozen=True)
class ExportReport:
    """The file, as ``--json`` prints it: number of pictures, length of a vector, bytes."""

    items: int
    dim: int
    bytes: int


def export_index(
    index: str | Path,
    target: str | Path,
    *,
    labels: Sequence[str] = (),
    progress: StartProgress = start_nothing,
) -> ExportReport:
    """Export an index as one npz file; it replaces ``target`` once complete and durable.

    See :mod:`.format` for the arrays. ``meta`` is a JSON object with ``kind``, ``schema``,
    ``version`` (of deeprank), ``model_sha256``, ``dim``, ``items``, ``last_id``, ``filters`` (of
    each root that has any), ``labelling`` (of each root not labelled by top folders), ``uploads``
    (number of the uploads' root, or null) and ``model`` (name, backbone, precision and picture
    rule; null if the model file cannot be read). Everything but the vectors is held in memory.

    Args:
        index: the index folder, which may be in use.
        target: the file.
        labels: only pictures with one of these; empty: all.
        progress: called as the work proceeds.

    Raises:
        IndexStateError, IndexDamagedError: the index cannot be read, or is damaged.
        QueryError: no picture has such a label.
        DataError: the file cannot be written.

    """
    folder, path = Path(index), Path(target)
    with Store.open(folder) as store, store.snapshot(), _written(path) as file:
        meta = store.meta()
        ids = Labels(store).ids_with(labels) if labels else None
        count = meta.items if ids is None else len(ids)
        described = _described(store, count, _model(folder, meta.model_sha256))
        with ArchiveWriter(file) as archive:
            archive.put_bytes("meta", json.dumps(described).encode())
            written = _write_vectors(store, archive, ids, count, progress)
            _Columns.of(store, None if ids is None else set(written.tolist())).write(archive, written, store.damage)
    return ExportReport(count, meta.dim, path.stat().st_size)


def _described(store: Store, count: int, model: ModelInfo | None) -> dict[str, Any]:
    meta = store.meta()
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "version": __version__,
        "items": count,
        "dim": meta.dim,
        "last_id": meta.last_id,
        "model_sha256": meta.model_sha256,
        "filters": [
            {"root": root, "include": filters.include, "exclude": filters.exclude}
            for root, filters in store.filters().items()
        ],
        "labelling": [
            {"root": root, "rule": labels.rule, "splits": labels.splits, "table": labels.table}
            for root, labels in store.labelling().items()
        ],
        "uploads": store.uploads_root(),
        "model": {
            "name": model.name,
            "backbone": model.backbone,
            "precision": model.precision,
            "picture": asdict(model.picture),
        }
        if model is not None
        else None,
    }


def _model(folder: Path, expected: str) -> ModelInfo | None:
    try:
        model = open_model(folder / MODEL, device="cpu")
    except ModelFileError:
        return None
    return model.info if model.sha256 == expected else None


def _write_vectors(store: Store, archive: ArchiveWriter, ids: Ids | None, count: int, progress: StartProgress) -> Ids:
    """Write the vectors with these ids, ascending (None: all), and return the ids written."""
    meta = store.meta()
    advance = progress("exporting", count)
    written, total = [np.empty(0, dtype=np.int64)], 0
    with archive.array("vectors", count, meta.dim) as write:
        for some, vectors, crcs in store.vector_chunks():
            total += crcs
            chosen = slice(None) if ids is None else np.isin(some, ids)
            write(vectors[chosen])
            written.append(some[chosen])
            advance(len(written[-1]))
    exported = np.concatenate(written)
    if len(exported) != count or total != meta.vector_sum:
        raise store.damage(f"items are missing: {meta.items:,} are expected, with another sum of checksums")
    return exported


@dataclass
class _Columns:
    """Everything but the vectors, column by column."""

    roots: dict[int, bytes]
    ids: array.array[int] = field(default_factory=lambda: array.array("q"))
    root_of: array.array[int] = field(default_factory=lambda: array.array("q"))
    label_of: array.array[int] = field(default_factory=lambda: array.array("q"))
    sizes: array.array[int] = field(default_factory=lambda: array.array("q"))
    mtimes_ns: array.array[int] = field(default_factory=lambda: array.array("q"))
    sha256: bytearray = field(default_factory=bytearray)
    decoding: array.array[int] = field(default_factory=lambda: array.array("i"))
    paths: bytearray = field(default_factory=bytearray)
    labels: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, ids: set[int] | None) -> _Columns:
        columns = cls(store.roots())
        for item in store.all_items():
            if ids is None or item.id in ids:
                columns._add(item)
        return columns

    def _add(self, item: Item) -> None:
        self.ids.append(item.id)
        self.root_of.append(item.root)
        self.label_of.append(-1 if item.label is None else self.labels.setdefault(item.label, len(self.labels)))
        self.sizes.append(item.size)
        self.mtimes_ns.append(item.mtime_ns)
        self.sha256 += item.sha256
        self.decoding.append(item.decoding)
        self.paths += item.path
        self.paths.append(0)

    def write(self, archive: ArchiveWriter, expected: Ids, damage: Callable[[str], Exception]) -> None:
        ids, roots = np.array(self.ids, dtype=np.int64), np.array(sorted(self.roots), dtype=np.int64)
        numbers = np.array(self.root_of, dtype=np.int64)
        names = sorted(self.labels)
        place = {name: number for number, name in enumerate(names)}
        # the last place, -1, is for no label
        places = np.array([*(place[name] for name in self.labels), -1], dtype=np.int32)
        if not np.array_equal(ids, expected) or not np.isin(numbers, roots).all() or len(self.sha256) != 32 * len(ids):
            raise damage("its tables do not agree")
        archive.put("ids", ids)
        archive.put_bytes("paths", self.paths)
        archive.put("root_of", np.searchsorted(roots, numbers).astype(np.int32))
        archive.put_bytes("labels", join_names(_without_zero(name) for name in names))
        archive.put("label_of", places[np.array(self.label_of, dtype=np.int64)])
        archive.put("sizes", np.array(self.sizes, dtype=np.int64))
        archive.put("mtimes_ns", np.array(self.mtimes_ns, dtype=np.int64))
        archive.put("sha256", np.frombuffer(self.sha256, dtype=np.uint8).reshape(-1, 32))
        archive.put("decoding", np.array(self.decoding, dtype=np.int32))
        archive.put_bytes("roots", join_names(self.roots[root] for root in roots.tolist()))
        archive.put("root_ids", roots)


def _without_zero(label: str) -> bytes:
    name = os.fsencode(label)
    if b"\0" in name or not name:
        raise DataError(
            f"The label {printable(label)!r} is empty or holds a zero byte, which ends a label in the file."
        )
    return name


@contextlib.contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file beside ``path``, which replaces ``path`` once complete."""
    try:
        if path.is_dir() or not path.name:
            raise DataError(f"{display_path(path)} is a folder; expected the name of a file.")
        with placed(path) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"{display_path(path)} cannot be written ({error.strerror or error}); check its folder, its permissions "
            "and the space left on the disk."
        ) from None
