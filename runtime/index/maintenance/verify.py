"""Check every part of an index against its checksums; repair keeps the sound parts."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np

from ...console import to_paste
from ...errors import DeepRankError, IndexDamagedError, IndexStateError, ModelFileError
from ...files import file_sha256
from ...model.pretrained import find_matching_model
from ...progress import StartProgress, start_nothing
from ...text import display_path
from ..ann.graph import GraphFile, GraphUnusableError, VectorComparison, open_graph
from ..database.records import GraphRow, Item, Meta
from ..database.recovery import (
    Row,
    integrity_faults,
    is_ours,
    listed_paths,
    put_in_place,
    read_rows,
    rebuild,
    sound_filters,
    sound_labelling,
    sound_roots,
)
from ..database.schema import connect
from ..database.store import Store
from ..database.writer import locked, open_writer
from ..graph_update import update_graph
from ..layout import DATABASE, GRAPH, MODEL, UPLOADS, database_id, disk_errors, permissions_of, put_copy
from ..ratings.recovery import rating_faults, rescue_ratings
from ..sync.options import SyncOptions
from ..sync.plan import plan_lost_uploads
from ..sync.run import SyncRun
from ..uploads.store import problem_of, upload_items, uploads_of

__all__ = ["Damage", "VerifyReport", "verify"]

# Limit for damaged items that are listed.
_MAX_NAMED = 10_000
# A writer renames a new graph a moment before it commits the graph's row.
_ATTEMPTS = 10
_PAUSE_S = 0.1


Part = Literal["database", "filters", "labelling", "graph", "model", "upload", "ratings"]
# Tables of the database: a repair writes it again.
_OF_DATABASE: tuple[Part, ...] = ("database", "filters", "labelling")


@dataclass(frozen=True)
class Damage:
    """Damage to one part of an index; as text, the fault and the advice.

    Attributes:
        part: the part that is damaged; ``upload``: the picture of an upload, whose vector is sound.
        fault: what is wrong with it.
        advice: what to do, where the fault does not say it.

    """

    part: Part
    fault: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.fault}; {self.advice}" if self.advice else self.fault


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        items: number of sound items.
        damaged: ids of the others, as far as they can be read.
        lost: their paths, as far as they can be read; without a checksum, so a name may itself be damaged.
        problems: what is damaged; none: the index is sound.
        repaired: the repairs, a sentence each.
        remaining: the problems that are still there.

    """

    items: int
    damaged: tuple[int, ...]
    problems: tuple[Damage, ...]
    repaired: tuple[str, ...] = ()
    remaining: tuple[Damage, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass
class _Findings:
    """The problems of one state of an index, and what its repair needs.

    ``uploaded``: the sound items of uploads; ``lost_uploads``: ids of those whose picture is missing or damaged.
    ``items``, ``damaged``, ``lost``: see :class:`VerifyReport`.
    """

    problems: list[Damage] = field(default_factory=list)
    uploaded: list[Item] = field(default_factory=list)
    lost_uploads: list[int] = field(default_factory=list)
    items: int = 0
    damaged: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def add(self, part: Part, *faults: str, advice: str = "") -> None:
        self.problems += [Damage(part, fault, advice) for fault in faults]

    def has(self, *parts: Part) -> bool:
        return any(problem.part in parts for problem in self.problems)


def verify(index: str | Path, *, repair: bool = False, progress: StartProgress = start_nothing) -> VerifyReport:
    """Check an index: SQLite's own check, all checksums, every vector's length, model, graph, ratings, upload files.

    Args:
        index: the index folder.
        repair: drop what is damaged (the next sync embeds those pictures again), and uploads whose files are lost;
            embed uploads whose rows are lost; keep the sound ratings; build the graph again; put the model back if the
            same is at hand (``./model.onnx``, or the one that ships).
        progress: told how it goes on.

    Raises:
        IndexStateError: there is no index, or it is of a newer schema.
        IndexLockedError: ``repair``, and another process is writing to it.

    """
    folder = Path(index)
    findings = _examine(folder)
    if repair and findings.problems:
        with locked(folder), disk_errors(folder):
            findings = _examine(folder)  # again, now that no other process can change it
            repaired = _repair(folder, findings, progress)
            after = _examine(folder)
        return _report(findings, after, repaired)
    return _report(findings, findings, [])


def _report(findings: _Findings, after: _Findings, repaired: list[str]) -> VerifyReport:
    return VerifyReport(
        after.items,
        tuple(findings.damaged),
        tuple(findings.problems),
        tuple(repaired),
        tuple(after.problems),
        tuple(dict.fromkeys(findings.lost)),
    )


def _examine(folder: Path) -> _Findings:
    """Check one state of an index; start again where its folder or database is replaced meanwhile."""
    while True:
        identity = database_id(folder)
        with _opened(folder) as (store, graph):
            findings = _check(store, graph)
        # Without a snapshot: reading every picture may take long, and writers would wait.
        _check_uploads(folder, findings)
        findings.add("ratings", *rating_faults(folder))
        if database_id(folder) in (identity, None):
            return findings


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[tuple[Store, _OpenGraph]]:
    """Open the database, even a damaged one, with a snapshot if possible, and its graph."""
    try:
        store = Store.open(folder)
    except IndexDamagedError:
        store = Store(connect(folder / DATABASE, "ro"), folder)
    with store, contextlib.ExitStack() as stack:
        with contextlib.suppress(IndexStateError):
            stack.enter_context(store.snapshot())
        yield store, _open_graph(store)


def _open_graph(store: Store) -> _OpenGraph:
    """Open the snapshot's graph, or a newer one: a writer may have replaced the file."""
    for attempt in range(_ATTEMPTS):
        graph = _OpenGraph.of(store)
        if graph.problem is None or not _is_written_to(store) or attempt == _ATTEMPTS - 1:
            break
        time.sleep(_PAUSE_S)
        with contextlib.suppress(IndexStateError):
            store.renew_snapshot()
    return graph


def _is_written_to(store: Store) -> bool:
    # A writer keeps a log; none can start to while a snapshot without a log is held.
    with contextlib.suppress(sqlite3.Error):
        mode = store.connection.execute("PRAGMA journal_mode").fetchone()
        return store.connection.in_transaction and mode == ("wal",)
    return False


@dataclass(frozen=True)
class _OpenGraph:
    """The graph's row and file, or what is wrong with either; no row: no graph is expected."""

    row: GraphRow | None = None
    file: GraphFile | None = None
    problem: IndexDamagedError | GraphUnusableError | None = None

    @classmethod
    def of(cls, store: Store) -> Self:
        try:
            row = store.graph() if is_ours(store.connection, "graph") else None
            return cls(row, open_graph(store.folder, row, store.meta()) if row is not None else None)
        except (IndexDamagedError, GraphUnusableError) as error:
            return cls(problem=error)


def _check(store: Store, graph: _OpenGraph) -> _Findings:
    findings = _Findings()
    findings.add("database", *integrity_faults(store.connection, store.database))
    roots, faults = sound_roots(store.connection)
    findings.add("database", *faults)
    findings.add("filters", *sound_filters(store.connection)[1])
    findings.add("labelling", *sound_labelling(store.connection)[1])
    meta = _meta(store)
    if meta is None:
        findings.add("database", "the row that describes the index is damaged")
        return findings
    uploads = next((root for root, path in roots.items() if path == os.fsencode(UPLOADS)), None)
    comparison = None if graph.file is None else VectorComparison(graph.file)
    ids = _check_items(store, meta, roots, findings, uploads, comparison)
    if findings.has(*_OF_DATABASE):
        _name_lost(store, meta, roots, ids, findings)
    _check_graph(graph, ids, findings, comparison)
    _check_model(store, meta, findings)
    return findings


def _name_lost(store: Store, meta: Meta, roots: dict[int, bytes], sound: set[int], findings: _Findings) -> None:
    """Record the paths of unsound items, from SQLite's separate list of names."""
    uploads = 0
    for item, root, path in listed_paths(store.connection):
        if len(findings.lost) == _MAX_NAMED:
            break
        if item not in sound and root in roots and 0 < item <= meta.last_id:
            if roots[root] == os.fsencode(UPLOADS):
                uploads += 1
            else:
                findings.lost.append(os.fsdecode(os.path.join(roots[root], path)))  # noqa: PTH118 - bytes
    if uploads:
        findings.add(
            "database",
            f"the rows of {uploads:,} upload{'' if uploads == 1 else 's'} are damaged, but their pictures are in "
            f"{UPLOADS}: --repair embeds them again, without labels",
        )


def _check_uploads(folder: Path, findings: _Findings) -> None:
    """Compare the file of each upload with the hash in its row."""
    for item in findings.uploaded:
        path = uploads_of(folder) / os.fsdecode(item.path)
        what = f"the picture of item {item.id}, {display_path(f'{UPLOADS}/{path.name}')},"
        try:
            fault = problem_of(path, item.sha256)
        except OSError as error:
            findings.add("upload", f"{what} cannot be read ({error.strerror})")
            continue
        if fault is not None and not _is_removed(folder, item):
            findings.add("upload", f"{what} {fault}")
            findings.lost_uploads.append(item.id)


def _is_removed(folder: Path, item: Item) -> bool:
    """Tell whether another process has removed an item since it was read."""
    with contextlib.suppress(IndexStateError), Store.open(folder) as store:
        return store.item_with(item.id) is None
    return False


def _meta(store: Store) -> Meta | None:
    if is_ours(store.connection, "meta"):
        with contextlib.suppress(IndexDamagedError):
            return store.meta()
    return None


def _check_items(
    store: Store,
    meta: Meta,
    roots: dict[int, bytes],
    findings: _Findings,
    uploads: int | None,
    comparison: VectorComparison | None,
) -> set[int]:
    """Check every item and the sums over all items; return the ids of the sound ones."""
    ids: set[int] = set()
    vector_sum = row_sum = others = 0
    for row in read_rows(store.connection, meta.dim, roots):
        if isinstance(row, Row):
            ids.add(row.item.id)
            findings.uploaded += [row.item] if row.item.root == uploads else []
            vector_sum, row_sum = vector_sum + row.vector_crc32, row_sum + row.row_crc32
            if comparison is not None:
                comparison.add(row.item.id, row.vector)
        elif len(findings.damaged) < _MAX_NAMED:
            findings.add("database", row.what)
            findings.damaged += [row.id] if row.id is not None else []
        else:
            others += 1
    if others:
        findings.add("database", f"{others:,} more items are damaged")
    findings.items = len(ids)
    if (len(ids), vector_sum, row_sum) != (meta.items, meta.vector_sum, meta.row_sum):
        findings.add(
            "database",
            f"{meta.items:,} items are expected, {len(ids):,} sound ones were found, with another sum of checksums",
        )
    return ids


def _check_graph(graph: _OpenGraph, ids: set[int], findings: _Findings, comparison: VectorComparison | None) -> None:
    if isinstance(graph.problem, IndexDamagedError):
        findings.add("database", "the row of the graph is damaged")
    elif graph.problem is not None:
        findings.add("graph", f"{graph.problem}: searches scan, which gives the exact result")
    elif graph.row is None or graph.file is None or comparison is None or findings.has(*_OF_DATABASE):
        return
    elif not _holds(graph.file, graph.row.covers, ids):
        findings.add("graph", f"{GRAPH} holds other items than the database")
    elif comparison.finish():
        findings.add("graph", f"{GRAPH} holds other vectors than the database")


def _holds(file: GraphFile, covers: int, ids: set[int]) -> bool:
    covered = np.array(sorted(item for item in ids if item <= covers), dtype=np.int64)
    return np.array_equal(file.nodes.item_ids(), covered)


def _check_model(store: Store, meta: Meta, findings: _Findings) -> None:
    try:
        if file_sha256(store.folder / MODEL) == meta.model_sha256:
            return
        fault = "is not the model that the vectors were made with"
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    again = to_paste("deeprank-index", "sync", "--reembed", "--model", "MODEL", "--index", store.folder)
    findings.add("model", f"{MODEL} {fault}", advice=f"put that one back, or embed all pictures again with: {again}")


def _repair(folder: Path, findings: _Findings, progress: StartProgress) -> list[str]:
    done = []
    new_database = findings.has(*_OF_DATABASE)
    new_graph = new_database or findings.has("graph")
    if findings.has("model"):
        done += _repair_model(folder)
    if findings.has("ratings"):
        done.append(rescue_ratings(folder))
    if new_database:
        with _opened(folder) as (store, _):
            kept = rebuild(store, _meta(store) or _meta_of_model(folder))
        put_in_place(folder)
        done.append(f"{kept:,} sound items were kept; sync the folders again to embed the others")
        done += _take_in_uploads(folder, progress)
    if findings.has("filters"):
        done.append("damaged filters were dropped; give --include and --exclude again with the next sync of the folder")
    if findings.has("labelling"):
        done.append(
            "damaged sources of labels were dropped; labels stay; give --labels again with the next sync of the folder"
        )
    if findings.lost_uploads:
        done.append(_drop_uploads(folder, findings.lost_uploads))
    if new_graph or findings.lost_uploads:
        with open_writer(folder) as writer:
            if new_graph:
                writer.set_graph(None)
            reason = update_graph(writer, progress)
        if reason is not None:
            done.append(f"there is no graph ({reason})")
        elif new_graph:
            done.append("the graph was built again")
    return done


def _drop_uploads(folder: Path, lost: Collection[int]) -> str:
    with open_writer(folder) as writer:
        writer.remove(item for item in lost if writer.item_with(item) is not None)
        writer.commit()
    those = "1 upload was" if len(lost) == 1 else f"{len(lost):,} uploads were"
    return f"{those} removed from the index, because the picture is lost; upload it again"


def _take_in_uploads(folder: Path, progress: StartProgress) -> list[str]:
    """Embed upload files whose rows were lost; a damaged database cannot tell which these are."""
    with open_writer(folder) as writer:
        plans = plan_lost_uploads(folder, upload_items(writer), writer.uploads_root())
        if not plans:
            return []
        try:
            report = SyncRun(writer, plans, SyncOptions(device="cpu"), progress).run()
        except DeepRankError as error:
            return [f"{len(plans[0].new):,} uploads without rows could not be embedded ({error}); their files stay"]
    skipped = [f"{display_path(path)} was skipped: {reason}" for path, reason in report.skipped]
    return [*skipped, *report.remarks]


def _repair_model(folder: Path) -> list[str]:
    """Restore the model of the index if an identical one is at hand."""
    with _opened(folder) as (store, _):
        meta = _meta(store)
    model = find_matching_model(meta.model_sha256) if meta is not None else None
    if model is None:
        return []
    put_copy(model, folder / MODEL, permissions_of(folder))
    return [f"{MODEL} was copied from {display_path(model)}, which is identical"]


def _meta_of_model(folder: Path) -> Meta:
    """Return a new index's state for the model in the folder, as the database has lost it."""
    from ...modelfile import open_model

    try:
        model = open_model(folder / MODEL, device="cpu")
    except ModelFileError as error:
        raise IndexStateError(
            f"Neither database nor model of {display_path(folder)} can be read ({error}) Delete the folder and make "
            "a new index with: deeprank-index sync PHOTOS --model MODEL."
        ) from None
    return Meta(model.sha256, model.info.embedding_dim)
