"""Remove pictures from an index by path, pattern, label or root; synced files stay."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import IndexStateError, QueryError
from ...progress import StartProgress, start_nothing
from ...text import display_path, printable
from ..database.store import Store
from ..database.writer import Writer, writing
from ..graph_update import update_graph
from ..search.paths import Paths
from ..uploads.items import take_out

__all__ = ["Removal", "plan_removal", "remove"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Removal:
    """The items to remove: ids, their paths, and the roots to forget.

    ``uploads`` is the number of uploads among them, whose files are deleted; no sync restores them.
    """

    ids: tuple[int, ...]
    paths: tuple[str, ...]
    roots: tuple[int, ...] = ()
    uploads: int = 0


def plan_removal(
    index: str | Path,
    patterns: Sequence[str] = (),
    *,
    labels: Sequence[str] = (),
    roots: Sequence[str | Path] = (),
) -> Removal:
    """Find the items of a removal; nothing is changed.

    Args:
        index: the index folder.
        patterns: paths of pictures or folders, from the current folder or from a synced one; else
            patterns as for :meth:`~..search.paths.Paths.ids_matching`, which match no more here
            than in a search.
        labels: remove every picture with one of these.
        roots: synced folders to remove with everything in them, and to forget.

    Raises:
        QueryError: a pattern, label or root matches nothing, or none is given.
        IndexStateError, IndexDamagedError: as for opening an index.

    """
    if not (patterns or labels or roots):
        raise QueryError("Nothing to remove was named; expected a path, a pattern, --label or --root.")
    with Store.open(Path(index)) as store, store.snapshot():
        known, uploads = store.roots(), store.uploads_root()
        forgotten = [_root(path, known) for path in roots]
        named = _Named(store, index).ids(patterns) if patterns else frozenset()
        chosen = [
            item for item in store.all_items() if item.id in named or item.label in labels or item.root in forgotten
        ]
    unused = set(labels).difference(item.label for item in chosen)
    if unused:
        what = f"The label {printable(min(unused))!r}"
        raise QueryError(f"{what} matches no picture of {display_path(index)}; nothing was removed.")
    paths = tuple(os.fsdecode(os.path.join(known[item.root], item.path)) for item in chosen)  # noqa: PTH118 - bytes
    uploaded = sum(item.root == uploads for item in chosen)
    return Removal(tuple(item.id for item in chosen), paths, tuple(forgotten), uploaded)


def remove(index: str | Path, removal: Removal, *, progress: StartProgress = start_nothing) -> int:
    """Carry out a removal in one transaction, and return the number of pictures.

    The files of uploads are deleted after the commit.

    Raises:
        IndexStateError: the index has changed since the removal was planned.
        IndexLockedError, IndexDamagedError: as for :func:`~..sync.sync.sync`.

    """
    with writing(Path(index)) as writer:
        _check_unchanged(writer, removal)
        take_out(writer, writer.items(removal.ids).values(), removal.roots)
        update_graph(writer, progress)
    return len(removal.ids)


def _check_unchanged(writer: Writer, removal: Removal) -> None:
    present = {item.id for item in writer.all_items()}
    left = sum(writer.count_of(root) for root in removal.roots)
    if not present.issuperset(removal.ids) or left > len(removal.ids):
        raise IndexStateError("Another process changed the index; nothing was removed. Run the command again.")


class _Named:
    """Finds pictures by paths or patterns."""

    def __init__(self, store: Store, index: str | Path) -> None:
        self._index = index
        self._roots = store.roots()
        self._paths = Paths(store)
        uploads = store.uploads_root()
        self._uploads = np.array([root == uploads for root, _ in self._paths.places], dtype=np.bool_)
        self._uploads_folder = None if uploads is None else self._roots[uploads]

    def ids(self, names: Sequence[str]) -> frozenset[int]:
        """Return the ids that these names match.

        Raises:
            QueryError: one of the names matches nothing.

        """
        chosen = np.zeros(len(self._paths.ids), dtype=np.bool_)
        for name in names:
            mask = self._at(name)
            if not mask.any():
                mask = self._matching(name)
            chosen |= mask
        return frozenset(self._paths.ids[chosen].tolist())

    def _at(self, name: str) -> Mask:
        """Return the items at or below a path, from the current folder, else from a synced one."""
        here = os.fsencode(name)
        if not here or b"\0" in here:
            return np.zeros(len(self._paths.ids), dtype=np.bool_)
        # Roots have no links in their paths: a path through a link is matched by its target.
        places = {os.path.abspath(here), os.path.realpath(here)}  # noqa: PTH100 - bytes, which pathlib does not take
        within = [place.rstrip(b"/") + b"/" for place in places]
        full = (os.path.join(self._roots[root], path) + b"/" for root, path in self._paths.places)  # noqa: PTH118
        mask = self._mask(path.startswith(tuple(within)) for path in full)
        mask &= ~self._uploads | any(self._is_of_uploads(place) for place in within)
        if not mask.any():
            mask = self._mask(path == os.path.normpath(here) for _, path in self._paths.places)
        return mask

    def _matching(self, pattern: str) -> Mask:
        """Return the items that match a pattern; whole paths match uploads only in their folder."""
        mask, whole = self._paths.matching(pattern)
        if whole is not None and not self._is_of_uploads(os.fsencode(whole)):
            if mask.any() and not (mask & ~self._uploads).any():
                raise self._no_match(
                    pattern, "except uploads. Name their folder, as deeprank-query shows it, or a --label"
                )
            mask &= ~self._uploads
        if not mask.any():
            raise self._no_match(pattern, self._advice(pattern))
        return mask

    def _is_of_uploads(self, place: bytes) -> bool:
        folder = self._uploads_folder
        if folder is None:
            return False
        return place.startswith((folder + b"/", glob.escape(folder) + b"/"))

    def _advice(self, pattern: str) -> str:
        """Return advice for a pattern whose ``*`` was meant to match several folders."""
        absolute = os.path.abspath(pattern)  # noqa: PTH100 - a pattern
        for root, path in self._paths.places:
            full = os.fsdecode(os.path.join(self._roots[root], path))  # noqa: PTH118 - bytes
            if fnmatch.fnmatchcase(full, absolute) or fnmatch.fnmatchcase(os.fsdecode(path), pattern):
                break
        else:
            return ""
        folder, _, name = pattern.rpartition("/")
        first, _, last = name.rpartition("*")
        for deeper in (f"{folder}/**/{name}" if folder else "", f"{folder}{'/' * bool(folder)}{first}*/**/*{last}"):
            count = int(self._paths.matching(deeper)[0].sum()) if deeper else 0
            if count:
                return f": a * stands for a part of one name, and ** for any folders. {deeper!r} matches {count:,}"
        return ": a * stands for a part of one name, and ** for any folders"

    def _no_match(self, pattern: str, more: str) -> QueryError:
        what = (
            f"{printable(pattern)!r} matches no picture of {display_path(self._index)}{' ' * more.startswith('except')}"
        )
        return QueryError(f"{what}{printable(more)}; nothing was removed.")

    def _mask(self, values: Iterable[bool]) -> Mask:
        return np.fromiter(values, dtype=np.bool_, count=len(self._paths.ids))


def _root(path: str | Path, known: dict[int, bytes]) -> int:
    expected = {os.fsencode(os.path.realpath(path)), os.path.abspath(os.fsencode(path))}  # noqa: PTH100
    for root, known_path in known.items():
        if known_path in expected:
            return root
    raise QueryError(
        f"{display_path(path)} is not a synced folder; expected "
        f"{' or '.join(display_path(known_path) for known_path in known.values()) or 'one, but there is none'}."
    )
