"""Check the storage of an index: writers, leftovers, free space, and the file system."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from ..files import open_regular
from ..index.folder import bytes_in, find_leftovers, has_log
from ..index.layout import DATABASE, GRAPH, LOCK
from ..shell import shell_word
from ..text import display_path
from .finding import Finding, ok, skipped, warning

__all__ = ["disk_finding", "file_system", "file_system_finding", "is_being_written", "writer_finding"]

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


def writer_finding(folder: Path) -> Finding:
    """Report an active writer, or the leftovers of a killed one."""
    active = is_being_written(folder)
    if active:
        return ok("index writer", "another process is writing to the index; searches go on meanwhile")
    if active is None:
        return skipped("index writer", "whether another process is writing to it cannot be told here")
    left = [path.name for path in find_leftovers(folder)] + ([f"{DATABASE}'s log"] if has_log(folder) else [])
    if left:
        return ok(
            "index writer",
            f"none; one that was killed has left {', '.join(map(display_path, left))}, which does no harm: the next "
            "sync continues there",
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
    writable = "" if os.access(folder, os.W_OK) else "; this user may read the index, not write to it"
    if free < needed:
        return warning(
            "index disk",
            f"{_size(free)} are free, and the next sync may need {_size(needed)} for a new graph",
            f"free some space; what the index takes itself: deeprank-index compact --index {shell_word(folder)}",
        )
    return ok("index disk", f"{_size(free)} free{writable}")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def file_system_finding(folder: Path) -> Finding:
    """Check that the index is on a local disk."""
    try:
        mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return skipped("index file system", "the system does not tell of which kind it is")
    kind = file_system(Path(os.path.realpath(folder)), mounts)
    if kind in _NETWORK:
        return warning(
            "index file system",
            f"{display_path(folder)} lies on {kind}, a network file system, on which the locks of SQLite are not to be "
            "trusted: two writers can damage it",
            f"deeprank-index copy /a/local/folder --index {shell_word(folder)}",
        )
    return ok("index file system", f"{display_path(kind or 'unknown')}, on this machine")


def file_system(path: Path, mounts: str) -> str | None:
    """Return the file system type of a path.

    Args:
        path: absolute, without links.
        mounts: content of Linux's ``/proc/mounts``.

    """
    found, depth = None, -1
    for line in mounts.splitlines():
        with contextlib.suppress(ValueError):
            _, point, kind, *_ = line.split(" ")
            mounted = Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), point))
            # Of several mounts on one point, the last one is visible.
            if len(mounted.parts) >= depth and path.is_relative_to(mounted):
                found, depth = kind, len(mounted.parts)
    return found
