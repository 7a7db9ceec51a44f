"""The files of uploads: names, writing, checking, copying and deleting."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ...files import (
    NotRegularError,
    Permissions,
    copy_blocks,
    create_file,
    file_sha256,
    make_folder,
    open_folder,
    open_regular,
    placed,
    prepared_for,
    sync_file,
)
from ...formats import EXTENSIONS
from ...progress import Advance, no_progress
from ...text import display_path
from ..database.records import Item
from ..database.store import Store
from ..database.writer import open_writer
from ..layout import UPLOADS, check_parts, permissions_of

__all__ = [
    "carry",
    "carry_uploads",
    "delete_files",
    "delete_unused",
    "find_unused",
    "foreign_names",
    "hash_in",
    "is_upload",
    "link_or_copy",
    "make_uploads",
    "problem_of",
    "put_file",
    "upload_items",
    "uploads_in",
    "uploads_of",
]

_NAME = re.compile(rf"[0-9a-f]{{64}}(?:{'|'.join(map(re.escape, sorted(EXTENSIONS)))})")
_HEX_DIGITS = 64


def uploads_of(folder: Path) -> Path:
    """Return the uploads folder of an index."""
    return folder / UPLOADS


def uploads_in(folder: Path) -> list[str]:
    """Return the sorted names of files in the uploads folder that are named like uploads."""
    return [name for name in _names(folder) if _NAME.fullmatch(name)]


def foreign_names(folder: Path) -> list[str]:
    """Return the entries of the uploads folder not named like uploads, relative to the index."""
    return [f"{UPLOADS}/{name}" for name in _names(folder) if not _is_ours(name)]


def hash_in(name: str | bytes) -> bytes:
    """Return the sha256 in the name of an upload's file."""
    return bytes.fromhex(os.fsdecode(name)[:_HEX_DIGITS])


def is_upload(path: bytes, sha256: bytes) -> bool:
    """Tell whether this is a valid path, under the uploads' root, for a file with this content."""
    name = os.fsdecode(path)
    return _NAME.fullmatch(name) is not None and hash_in(name) == sha256


def upload_items(store: Store) -> dict[bytes, Item]:
    """Return the uploaded items by file name."""
    root = store.uploads_root()
    return {} if root is None else store.items_by_root([root])[root]


def put_file(folder: Path, name: str, content: bytes) -> os.stat_result:
    """Write an upload's file atomically and durably; return its status; the lock must be held.

    Raises:
        IndexStateError: the uploads folder is a link or a file.

    """
    target = make_uploads(folder) / name
    with placed(target, permissions_of(folder)) as file:
        file.write(content)
    return target.lstat()


def problem_of(path: Path, sha256: bytes) -> str | None:
    """Return the fault of a file with known content, as the end of a sentence; None if it is right.

    Raises:
        OSError: it cannot be read, or is a link, which is not followed, so that nothing is known of
            it.

    """
    try:
        digest = file_sha256(path, follow_links=False)
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except NotRegularError:
        if path.is_symlink():  # the link may well lead to the picture
            raise
        return "is not a regular file"
    return None if digest == sha256.hex() else "is damaged: its content differs from the upload"


def carry(
    source: Path,
    target: Path,
    sha256: bytes,
    permissions: Permissions,
    advance: Advance = no_progress,
) -> str | None:
    """Copy a file of known content, with its mtime; the caller makes it durable.

    Args:
        source: the file.
        target: a new name in an existing folder.
        sha256: of its content.
        permissions: of the copy.
        advance: called with the number of bytes copied.

    Returns:
        None, or the fault as the end of a sentence; then there is no file at ``target``.

    """
    try:
        file = open_regular(source)
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    with file, create_file(target, permissions) as copied:
        digest = copy_blocks(file, copied, advance)
        status = os.fstat(file.fileno())
    if digest != sha256:
        target.unlink()
        return "is damaged: its content differs from the upload"
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    return None


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system has no links; its folder is synced later."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        sync_file(target)


def find_unused(store: Store) -> list[Path]:
    """Return upload files without an item in a sound index: a killed process left them.

    The lock must be held: a writer puts the file before it commits the item.
    """
    used = {os.fsdecode(name) for name in upload_items(store)}
    return [uploads_of(store.folder) / name for name in _names(store.folder) if _is_ours(name) and name not in used]


def delete_unused(folder: Path, names: Iterable[bytes]) -> set[bytes]:
    """Delete these files if no item uses them, and return the deleted ones; the lock must be held.

    A file that cannot be deleted is left to ``compact``, so that a successful commit is not
    reported as a failure.
    """
    named = {name: os.fsdecode(name) for name in names if _NAME.fullmatch(os.fsdecode(name))}
    with Store.open(folder) as store:
        root = store.uploads_root()
        unused = {name: file for name, file in named.items() if root is None or store.item_at(root, name) is None}
    gone = delete_files(folder, unused.values())
    return {name for name, file in unused.items() if file in gone}


def delete_files(folder: Path, names: Iterable[str]) -> set[str]:
    """Delete upload files, and return the names of those gone; undeletable files stay.

    The folder is opened once, without following a link: if it is replaced meanwhile, no other
    user's file is deleted.
    """
    deleted: set[str] = set()
    place, descriptor = uploads_of(folder), None
    with contextlib.ExitStack() as stack:
        if os.unlink in os.supports_dir_fd:
            try:
                descriptor = stack.enter_context(open_folder(place, follow_links=False))
            except OSError:
                return deleted
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(name if descriptor is not None else place / name, dir_fd=descriptor)
                deleted.add(name)
    return deleted


def _is_ours(name: str) -> bool:
    # Earlier versions used a temporary name that ends in .tmp.
    return _NAME.fullmatch(prepared_for(name) or name.removesuffix(".tmp")) is not None


def _names(folder: Path) -> list[str]:
    """Return the entries of the uploads folder; a link is not followed, for safety."""
    place = uploads_of(folder)
    try:
        return [] if place.is_symlink() else sorted(os.listdir(place))  # noqa: PTH208 - names alone
    except (FileNotFoundError, NotADirectoryError):
        return []


def make_uploads(folder: Path) -> Path:
    """Return the uploads folder of an index, created durably if missing.

    Raises:
        IndexStateError: there is a link or a file.

    """
    check_parts(folder)
    place = uploads_of(folder)
    if not place.exists():
        make_folder(place, permissions_of(folder))
    return place


def carry_uploads(
    source: Path, making: Path, advance: Advance = no_progress, is_gone: Callable[[int], bool] = lambda _: False
) -> list[str]:
    """Copy the files of an index's upload rows into it, each compared with the hash in its row.

    Args:
        source: the folder that contains them.
        making: the new index, not yet in use, and without upload files.
        advance: called with the number of bytes copied.
        is_gone: tells whether an item was removed from the original index; then its row is removed,
            too.

    Returns:
        Messages for the user about files that were not copied; their rows stay.

    """
    with open_writer(making) as writer:
        items = upload_items(writer)
        missing = _carry_all(items, source, making, advance) if items else {}
        gone = [items[path].id for path in missing if is_gone(items[path].id)]
        writer.remove(gone)
        writer.commit()
    return _remarks([what for path, what in missing.items() if items[path].id not in gone])


def _carry_all(items: Mapping[bytes, Item], source: Path, making: Path, advance: Advance) -> dict[bytes, str]:
    """Copy the files, and return the fault of each that was not copied."""
    make_uploads(making)
    permissions = permissions_of(making)
    problems = {}
    for path, item in items.items():
        # Another name than ours could lead out of the folder.
        name = os.fsdecode(path)
        problem: str | None = "has a name that is not an upload's"
        if is_upload(path, item.sha256):
            problem = carry(source / name, uploads_of(making) / name, item.sha256, permissions, advance)
        if problem is not None:
            problems[path] = f"{display_path(source / name)} {problem}"
    return problems


def _remarks(problems: list[str]) -> list[str]:
    if not problems:
        return []
    count = "1 upload has" if len(problems) == 1 else f"{len(problems):,} uploads have"
    return [
        f"{count} no picture there, only a row: {problems[0]}. Put recovered files into the folder {UPLOADS} of the "
        "new index."
    ]
