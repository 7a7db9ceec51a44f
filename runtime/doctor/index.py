"""Check an index: its disk, file system and writer, its database, model, graph and contents."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import IndexDamagedError
from ..files import file_sha256, open_regular
from ..index.folder import bytes_in, find_leftovers, has_log
from ..index.layout import DATABASE, GRAPH, LOCK, MODEL, RATINGS, is_index
from ..index.presentation import rating_counts
from ..shell import shell_word
from ..text import display_path
from .finding import Finding, ok, problem, skipped, warning
from .model import describe, model_finding

if TYPE_CHECKING:
    from ..devices import Device
    from ..index.database.records import Meta
    from ..modelfile import OpenModel

__all__ = [
    "contents_finding",
    "database_finding",
    "disk_finding",
    "file_system",
    "file_system_finding",
    "graph_finding",
    "half_done_finding",
    "has_ratings",
    "index_model_finding",
    "is_being_written",
    "is_there",
    "missing_finding",
    "ratings_finding",
    "writer_finding",
]


_MOUNTS = Path("/proc/mounts")
_OCTAL = re.compile(r"\\([0-7]{3})")
# Shared between machines, where SQLite's locks are unreliable.
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "beegfs"}
    | {"orangefs", "ocfs2", "gfs2", "davfs", "fuse.davfs2", "fuse.sshfs", "fuse.rclone", "fuse.s3fs", "fuse.gcsfuse"}
    | {"fuse.glusterfs", "fuse.ceph", "fuse.cephfs", "fuse.goofys", "fuse.mount-s3", "fuse.juicefs", "fuse.smbnetfs"}
    | {"fuse.curlftpfs", "fuse.blobfuse", "fuse.blobfuse2"}
)
# A new graph is written beside the old one before replacing it.
_GRAPHS_AT_A_TIME = 2

# Maximum number of folders in a suggested command.
_MAX_NAMED = 5


def writer_finding(folder: Path) -> Finding:
    """Report an active writer, or the leftovers of a killed one."""
    active = is_being_written(folder)
    if active:
        return ok("index writer", "another process is writing to the index; searches still work")
    if active is None:
        return skipped("index writer", "this system cannot tell whether another process is writing to it")
    left = [path.name for path in find_leftovers(folder)] + ([f"{DATABASE}'s log"] if has_log(folder) else [])
    if left:
        return ok(
            "index writer",
            f"none; a killed writer left {', '.join(map(display_path, left))}, which is harmless: the next sync "
            "continues from there",
        )
    return ok("index writer", "none")


def is_being_written(folder: Path) -> bool | None:
    """Return whether a process holds the lock of an index; None if unknown. Creates no file.

    The lock is requested as a shared one, and released at once.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        with open_regular(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def disk_finding(folder: Path) -> Finding:
    """Compare the free space with what the next sync needs for a graph."""
    graph = folder / GRAPH
    return describe_space(folder, shutil.disk_usage(folder).free, bytes_in(graph) if graph.exists() else 0)


def describe_space(folder: Path, free: int, graph: int) -> Finding:
    """Return whether there is room for two graphs, as a finding.

    Args:
        folder: of the index.
        free: free bytes on its disk.
        graph: bytes of the graph.

    """
    needed = _GRAPHS_AT_A_TIME * graph
    writable = "" if os.access(folder, os.W_OK) else "; this user can read the index, but not write to it"
    if free < needed:
        return warning(
            "index disk",
            f"{_size(free)} are free, but the next sync may need {_size(needed)} for a new graph",
            f"free some space, some of it in the index itself: deeprank-index compact --index {shell_word(folder)}",
        )
    return ok("index disk", f"{_size(free)} free{writable}")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def file_system_finding(folder: Path) -> Finding:
    """Check that the index is on a local disk."""
    try:
        mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return skipped("index file system", "the system does not report its type")
    kind = file_system(Path(os.path.realpath(folder)), mounts)
    if kind in _NETWORK:
        return warning(
            "index file system",
            f"{display_path(folder)} is on {kind}, a network file system, where SQLite's locks are unreliable: two "
            "writers can damage the index",
            f"deeprank-index copy /a/local/folder --index {shell_word(folder)}",
        )
    return ok("index file system", f"{display_path(kind or 'unknown')}, on this machine")


def file_system(path: Path, mounts: str) -> str | None:
    """Return the file system type of a path.

    Args:
        path: absolute, without links.
        mounts: content of Linux's ``/proc/mounts``.

    """
    file_system_kind, depth = None, -1
    for line in mounts.splitlines():
        with contextlib.suppress(ValueError):
            _, point, kind, *_ = line.split(" ")
            mounted = Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), point))
            # Of several mounts on one point, the last one is visible.
            if len(mounted.parts) >= depth and path.is_relative_to(mounted):
                file_system_kind, depth = kind, len(mounted.parts)
    return file_system_kind


def is_there(folder: Path) -> bool:
    """Return whether there is an index, without opening it, which would recover it."""
    return is_index(folder)


def missing_finding(folder: Path, *, named: bool) -> Finding:
    """Return that there is no index; a problem if the user named it."""
    made = f"deeprank-index sync PHOTOS --index {shell_word(folder)}"
    state = "holds no index" if os.path.isdir(folder) else "does not exist"  # noqa: PTH112 - see files.is_index
    if named:
        return problem("index", f"{display_path(folder)} {state}", made)
    return skipped("index", "there is none here", made)


def half_done_finding(folder: Path) -> Finding | None:
    """Return a warning if a killed writer left a journal, which only a write can resolve."""
    for name in (DATABASE, RATINGS):
        journal = folder / f"{name}-journal"
        if journal.is_file() and journal.stat().st_size and not is_being_written(folder):
            return warning(
                "index",
                f"a writer was killed while it changed {display_path(folder / name)}; the next command that opens the "
                "index rolls back the unfinished change",
                f"deeprank-index info --index {shell_word(folder)}",
            )
    return None


def database_finding(folder: Path) -> Finding:
    """Open the database and read its metadata; only ``--thorough`` reads every picture's row."""
    try:
        return _database(folder)
    except IndexDamagedError as error:
        return problem("index", str(error), repaired(folder))


def _database(folder: Path) -> Finding:
    from ..index.database.store import Store

    with Store.open(folder) as store, store.snapshot():
        meta, roots = store.meta(), store.synced_roots()
        uploads = store.uploads_root()
        uploaded = 0 if uploads is None else store.count_of(uploads)
    if not meta.items:
        return warning("index", f"{display_path(folder)} holds no pictures", synced(folder, roots.values()))
    summary = f"{display_path(folder)}, {_pictures(meta.items)} of {len(roots)} folder{'' if len(roots) == 1 else 's'}"
    summary += f", {uploaded:,} of them uploaded" if uploaded else ""
    gone = [path for path in roots.values() if not os.path.isdir(path)]  # noqa: PTH112 - bytes
    if gone:
        summary += f"; {display_path(gone[0])} does not exist, so its pictures are found but cannot be opened"
    return ok("index", summary)


def index_model_finding(folder: Path, checked: OpenModel | None, device: Device) -> Finding:
    """Check that the index's model made its vectors, and that it runs.

    Args:
        folder: of the index.
        checked: a model that passed its check; the same model is not run again.
        device: to run it on.

    Raises:
        ModelFileError: it cannot be opened or run.

    """
    from ..index.database.store import Store
    from ..modelfile import open_model

    with Store.open(folder) as store:
        expected = store.meta().model_sha256
    try:
        digest = file_sha256(folder / MODEL)
    except OSError as error:
        return problem("index model", f"{MODEL} cannot be read ({error.strerror})", reembedded(folder))
    if digest != expected:
        return problem("index model", f"{MODEL} is not the model that made the vectors", reembedded(folder))
    if checked is not None and checked.sha256 == expected:
        return ok("index model", "the model above")
    opened = open_model(folder / MODEL, device=device)
    return model_finding("index model", opened, where=describe(opened), fix=reembedded(folder))


def graph_finding(folder: Path) -> Finding:
    """Check that the graph matches the database, and how much of the index it covers."""
    from ..index.ann.graph import GraphUnusableError, open_graph
    from ..index.database.store import Store
    from ..index.graph_update import is_crowded

    try:
        with Store.open(folder) as store, store.snapshot():
            meta, row, roots = store.meta(), store.graph(), store.synced_roots()
            if row is None:
                return _no_graph(folder, meta, synced(folder, roots.values()))
            newer = store.count_after(row.covers)
        file = open_graph(folder, row, meta)
    except GraphUnusableError as error:
        if is_being_written(folder):
            return ok("index graph", f"{error}, while another process is writing; until it ends, searches scan")
        return warning("index graph", f"{error}: searches scan, which is exact but slower", repaired(folder))
    except IndexDamagedError as error:
        return problem("index graph", str(error), repaired(folder))
    if file.nodes.items + newer != meta.items:
        return warning(
            "index graph",
            f"with newer pictures it holds {_pictures(file.nodes.items + newer)} of {meta.items:,}: searches scan, "
            "which is exact but slower; the next sync rebuilds it",
            synced(folder, roots.values()),
        )
    if is_crowded(file):
        return warning(
            "index graph",
            f"{file.repeated():,} of its {len(file.made_for):,} vectors are copies of others, because an earlier "
            "version built it: searches through it can miss pictures; the next sync rebuilds it",
            synced(folder, roots.values()),
        )
    summary = f"{file.nodes.count:,} vectors"
    summary += f" of {_pictures(file.nodes.items)}" if file.nodes.items > file.nodes.count else ""
    summary += f"; {file.dead:,} removed ones are left out of all results" if file.dead else ""
    summary += f"; {_pictures(newer)} added later are scanned" if newer else ""
    return ok("index graph", summary)


def _no_graph(folder: Path, meta: Meta, sync: str) -> Finding:
    if not meta.items:
        return ok("index graph", "none, because the index holds no pictures")
    if is_being_written(folder):
        return ok("index graph", "none yet: another process is writing; until it ends, searches scan")
    return warning("index graph", f"there is no {GRAPH}: searches scan, which is exact but slower", sync)


def has_ratings(folder: Path) -> bool:
    """Return whether an index has a database of ratings."""
    return (folder / RATINGS).exists()


def ratings_finding(folder: Path) -> Finding:
    """Open the ratings and read their totals."""
    from ..index.ratings.store import RatingStore

    try:
        with RatingStore.open(folder) as store:
            totals = store.totals()
    except IndexDamagedError as error:
        return problem("index ratings", str(error), repaired(folder))
    return ok("index ratings", rating_counts(totals.comparisons, totals.marks))


def contents_finding(folder: Path) -> Finding:
    """Run all checks of ``deeprank-index verify``."""
    from ..index.maintenance.verify import verify

    report = verify(folder)
    if not report.problems:
        parts = "model, graph and ratings" if has_ratings(folder) else "model and graph"
        return ok("index contents", f"all checksums match: {_pictures(report.items)}, {parts}")
    more = f", and {len(report.problems) - 1:,} more" if len(report.problems) > 1 else ""
    summary = f"{report.problems[0]}{more}"
    # A graph is a cache: without it every answer is right.
    if all(each.part == "graph" for each in report.problems):
        return warning("index contents", summary, repaired(folder))
    return problem("index contents", summary, repaired(folder))


def repaired(folder: Path) -> str:
    """Return the command that keeps the sound parts of an index."""
    return f"deeprank-index verify --repair --index {shell_word(folder)}"


def reembedded(folder: Path) -> str:
    """Return the fix for an index without its model."""
    again = f"deeprank-index sync --reembed --model MODEL --index {shell_word(folder)}"
    return f"{repaired(folder)}  # if ./{MODEL} or a bundled model is the same; otherwise: {again}"


def synced(folder: Path, roots: Iterable[bytes]) -> str:
    """Return the command that syncs an index with its folders."""
    named = [shell_word(os.fsdecode(root)) for root in roots]
    words = " ".join(named[:_MAX_NAMED]) or "PHOTOS"
    return f"deeprank-index sync {words} --index {shell_word(folder)}"


def _pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"
