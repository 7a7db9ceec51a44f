"""Import of an untrusted npz file into a new index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ...console import to_paste
from ...errors import DataError, IndexStateError, QueryError
from ...files import NotRegularError, open_regular
from ...model.pretrained import FORMER_MODELS, find_matching_model, find_model
from ...modelfile import open_model
from ...progress import StartProgress, start_nothing
from ...scan import are_unit
from ...text import display_path
from ..database.records import MAX_ID, Item, is_root, strays
from ..database.store import Ids, Vectors
from ..database.writer import Writer, open_writer
from ..folder import bytes_in, check_free, install_model, placed_folder
from ..graph_update import update_graph
from ..layout import PRIVATE, SHARED, UPLOADS
from ..patterns import RootFilters
from ..root_labels import RootLabels
from ..uploads.store import carry_uploads, is_upload
from .format import ARRAYS, KIND, SCHEMA, ArchiveReader, split_names

__all__ = ["ImportReport", "import_index"]

_ROWS_AT_A_TIME = 4096
_COMMIT_ROWS = 16 * _ROWS_AT_A_TIME
_ONE_EACH = ("ids", "root_of", "label_of", "sizes", "mtimes_ns", "sha256", "decoding", "vectors")


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


@dataclass(frozen=True)
class _Described:
    """The content of ``meta``."""

    model_sha256: str
    dim: int
    last_id: int
    model_name: str | None
    filters: dict[int, RootFilters]
    labelling: dict[int, RootLabels]
    uploads: int | None


@dataclass(frozen=True)
class _Content:
    """Everything but the vectors, checked."""

    ids: Ids
    root_of: Ids
    paths: list[bytes]
    label_of: npt.NDArray[np.int32]
    sizes: Ids
    mtimes_ns: Ids
    sha256: npt.NDArray[np.uint8]
    decoding: npt.NDArray[np.int32]
    roots: dict[int, bytes]
    labels: list[str]
    uploads: int | None

    @property
    def synced(self) -> tuple[str, ...]:
        """The synced folders."""
        return tuple(os.fsdecode(path) for root, path in self.roots.items() if root != self.uploads)

    def item(self, row: int) -> Item:
        label = int(self.label_of[row])
        return Item(
            int(self.ids[row]),
            int(self.root_of[row]),
            self.paths[row],
            None if label < 0 else self.labels[label],
            int(self.sizes[row]),
            int(self.mtimes_ns[row]),
            self.sha256[row].tobytes(),
            int(self.decoding[row]),
        )


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
        source: an npz file.
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
    with _open_file(path) as file:
        archive = ArchiveReader(file, path)
        described = _read_meta(archive)
        chosen = _find_model(path, described, model)
        content = _read_content(archive, described)
        permissions = SHARED if shared else PRIVATE
        with placed_folder(folder, permissions) as making:
            install_model(making, chosen, described.model_sha256, described.dim, permissions)
            with open_writer(making) as writer:
                _fill(writer, archive, described, content, progress)
                reason = update_graph(writer, progress)
            without = [] if content.uploads is None else carry_uploads(_place_of_uploads(content), making)
            size = bytes_in(making)
    remarks = (*_remarks(folder, content.synced, reason), *without)
    return ImportReport(len(content.ids), size, content.synced, remarks)


def _open_file(path: Path) -> IO[bytes]:
    try:
        return open_regular(path, follow_links=True)  # a pipe would block
    except NotRegularError:
        raise DataError(f"{display_path(path)} is not a regular file; expected an npz file.") from None
    except OSError as error:
        raise DataError(f"{display_path(path)} cannot be read ({error.strerror}); expected an npz file.") from None


def _place_of_uploads(content: _Content) -> Path:
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


def _read_meta(archive: ArchiveReader) -> _Described:
    try:
        values = json.loads(archive.read("meta").tobytes().decode())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise archive.error("is not marked as an exported index")
    schema = values.get("schema")
    if type(schema) is not int or schema < 1:
        raise archive.error("has no schema number")
    if schema > SCHEMA:
        raise archive.error(
            f"has schema {schema}, newer than this version reads (up to {SCHEMA}): upgrade deep-ranking"
        )
    return _described(archive, values)


def _described(archive: ArchiveReader, values: dict[str, Any]) -> _Described:
    sha256, dim, last_id, model = (values.get(name) for name in ("model_sha256", "dim", "last_id", "model"))
    if not (isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")):
        raise archive.error("does not name its model by a sha256")
    if type(dim) is not int or archive.shape("vectors")[1] != dim or dim < 1:
        raise archive.error("holds vectors of another length than it states")
    if type(last_id) is not int or not 0 <= last_id < MAX_ID:
        raise archive.error("does not state its last id")
    name = model.get("name") if isinstance(model, dict) else None
    filters = _read_filters(archive, values.get("filters", []))
    uploads = values.get("uploads")
    if uploads is not None and type(uploads) is not int:
        raise archive.error("does not state the root of the uploads as a number")
    labelling = _read_labelling(archive, values.get("labelling", []))
    return _Described(sha256, dim, last_id, name if isinstance(name, str) else None, filters, labelling, uploads)


def _read_filters(archive: ArchiveReader, entries: Any) -> dict[int, RootFilters]:
    """Return the filters of each root that has any, by number."""
    filters = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        values = entry if isinstance(entry, dict) else {}
        root, lists = values.get("root"), [values.get("include"), values.get("exclude")]
        if type(root) is not int or not all(isinstance(some, list) and all(map(_is_text, some)) for some in lists):
            raise archive.error("holds filters that are not lists of patterns")
        filters[root] = RootFilters(*map(tuple, lists))  # type: ignore[arg-type]
        try:
            filters[root].check()
        except QueryError as error:
            raise archive.error(f"holds filters that cannot be used ({error})") from None
    return filters


def _read_labelling(archive: ArchiveReader, entries: Any) -> dict[int, RootLabels]:
    """Return the label source of each root not labelled by top folders, by number."""
    labelling = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        values = entry if isinstance(entry, dict) else {}
        root, rule, splits, table = (values.get(name) for name in ("root", "rule", "splits", "table"))
        known = RootLabels.of(rule, splits, table)
        if type(root) is not int or known is None:
            raise archive.error("holds an invalid source of labels")
        labelling[root] = known
    return labelling


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _find_model(path: Path, described: _Described, named: str | Path | None) -> Path:
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


def _read_content(archive: ArchiveReader, described: _Described) -> _Content:
    counts = {name: archive.shape(name)[0] for name in _ONE_EACH if name in archive}
    if len(set(counts.values())) != 1:
        shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        raise archive.error(f"holds {shown}; these numbers must be equal")
    count = counts["ids"]
    numbers = {name: archive.read(name) for name in ARRAYS if name in archive and name not in ("meta", "vectors")}
    names = {name: split_names(numbers[name].tobytes()) for name in ("paths", "labels", "roots")}
    _check_numbers(archive, numbers, names, described)
    if len(names["paths"]) != count:
        raise archive.error(f"holds {count:,} ids and {len(names['paths']):,} paths")
    content = _Content(
        ids=numbers["ids"],
        root_of=numbers["root_ids"][numbers["root_of"]],
        paths=names["paths"],
        label_of=numbers["label_of"],
        sizes=numbers["sizes"],
        mtimes_ns=numbers["mtimes_ns"],
        sha256=numbers["sha256"],
        decoding=numbers.get("decoding", np.ones(count, dtype=np.int32)),
        roots=dict(zip(numbers["root_ids"].tolist(), names["roots"], strict=True)),
        labels=[os.fsdecode(label) for label in names["labels"]],
        uploads=described.uploads,
    )
    _check_names(archive, content)
    return content


def _check_numbers(
    archive: ArchiveReader,
    numbers: dict[str, npt.NDArray[Any]],
    names: dict[str, list[bytes]],
    described: _Described,
) -> None:
    for name in ("ids", "root_ids"):
        if len(np.unique(numbers[name])) != len(numbers[name]) or (numbers[name] < 1).any():
            raise archive.error(f"holds {name} that are not all different and above 0")
    if numbers["ids"].max(initial=0) > described.last_id or numbers["root_ids"].max(initial=0) >= MAX_ID:
        raise archive.error("holds an id beyond the last one")
    if len(numbers["root_ids"]) != len(names["roots"]):
        raise archive.error(f"holds {len(numbers['root_ids']):,} root_ids and {len(names['roots']):,} roots")
    for name, lowest, known in (("root_of", 0, "roots"), ("label_of", -1, "labels")):
        if ((numbers[name] < lowest) | (numbers[name] >= len(names[known]))).any():
            raise archive.error(f"has a {name} that points outside its {known}")
    if (numbers["sizes"] < 0).any():
        raise archive.error("holds a size below 0")
    if "decoding" in numbers and (numbers["decoding"] < 1).any():
        raise archive.error("holds a version of decoding rules below 1")


def _check_names(archive: ArchiveReader, content: _Content) -> None:
    for root in content.roots.values():
        if not is_root(root):
            raise archive.error(f"holds the root {display_path(root)!r}, which is not an absolute path")
    if len(set(content.roots.values())) != len(content.roots):
        raise archive.error("holds a root twice")
    # A result's path is joined with its root, and must stay inside.
    if strays(content.paths):
        path = next(path for path in content.paths if strays([path]))
        raise archive.error(f"holds the path {display_path(path)!r}, which is not below a root")
    if len(set(zip(content.root_of.tolist(), content.paths, strict=True))) != len(content.paths):
        raise archive.error("holds a picture of one root and path twice")
    if not all(content.labels):
        raise archive.error("holds an empty label")
    _check_uploads(archive, content)


def _check_uploads(archive: ArchiveReader, content: _Content) -> None:
    if content.uploads is not None and content.uploads not in content.roots:
        raise archive.error("has uploads under a root that it does not hold")
    for row in np.flatnonzero(content.root_of == content.uploads).tolist() if content.uploads is not None else []:
        if not is_upload(content.paths[row], content.sha256[row].tobytes()):
            raise archive.error(
                f"holds the upload {display_path(content.paths[row])!r}, which is not named by the hash of its content"
            )


def _fill(
    writer: Writer, archive: ArchiveReader, described: _Described, content: _Content, progress: StartProgress
) -> None:
    for root, path in content.roots.items():
        writer.add_root(os.fsencode(UPLOADS) if root == content.uploads else path, root)
        if root in described.filters:
            writer.set_filters(root, described.filters[root])
        if root in described.labelling:
            writer.set_labelling(root, described.labelling[root])
    writer.reserve_ids(described.last_id)
    advance = progress("importing", len(content.ids))
    row = 0
    for vectors in _checked_vectors(archive):
        for vector in vectors:
            writer.restore(content.item(row), vector.tobytes())
            row += 1
        advance(len(vectors))
        if row % _COMMIT_ROWS == 0:
            writer.commit()
    writer.commit()


def _checked_vectors(archive: ArchiveReader) -> Iterator[Vectors]:
    for vectors in archive.chunks("vectors", _ROWS_AT_A_TIME):
        if not are_unit(vectors).all():
            raise archive.error("holds a vector that is not finite or not of unit length")
        yield vectors
