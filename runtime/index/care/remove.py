"""Taking pictures out of an index by path, pattern, label or root; the files of synced folders stay."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import IndexStateError, QueryError
from ...progress import StartProgress, start_nothing
from ...text import display_path, printable
from ..database.records import Item
from ..database.store import Store
from ..database.writer import Writer, writing
from ..graph.update import update_graph
from ..uploads.removing import take_out

__all__ = ["Removal", "plan_removal", "remove"]


@dataclass(frozen=True)
class Removal:
    """What is to be taken out: ids, the paths they stand for, and the roots that are forgotten.

    ``uploads`` is the number of those that were uploaded, whose files are deleted; no sync brings them back.
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
    """Find what a removal takes out; nothing is changed.

    Args:
        index: the index folder.
        patterns: paths of files or folders, or patterns with ``*``, ``?`` and ``[...]`` (in which ``*`` matches ``/``
            too) for the whole path or the path under the root. Relative ones start from the current folder.
        labels: take out every picture that has one of them.
        roots: synced folders, taken out with everything in them and forgotten.

    Raises:
        QueryError: a pattern, label or root matches nothing, or none is given.
        IndexStateError, IndexDamagedError: as for opening an index.

    """
    if not (patterns or labels or roots):
        raise QueryError("Nothing to remove was named; expected a path, a pattern, --label or --root.")
    with Store.open(Path(index)) as store, store.snapshot():
        known, uploads = store.roots(), store.uploads_root()
        forgotten = [_root(path, known) for path in roots]
        tests: list[_PathTest | _LabelTest] = [_PathTest(pattern, known) for pattern in patterns]
        tests += [_LabelTest(label) for label in labels]
        chosen = [item for item in store.all_items() if _matches(item, tests) or item.root in forgotten]
    unused = [test for test in tests if not test.used]
    if unused:
        raise QueryError(f"{unused[0].what} matches no picture of {display_path(index)}; nothing was removed.")
    paths = tuple(os.fsdecode(os.path.join(known[item.root], item.path)) for item in chosen)  # noqa: PTH118 - bytes
    uploaded = sum(item.root == uploads for item in chosen)
    return Removal(tuple(item.id for item in chosen), paths, tuple(forgotten), uploaded)


def remove(index: str | Path, removal: Removal, *, progress: StartProgress = start_nothing) -> int:
    """Take out what was planned, in one transaction, and return the number of pictures.

    The files of uploads are deleted once that is committed.

    Raises:
        IndexStateError: the index has changed since the removal was planned.
        IndexLockedError, IndexDamagedError: as for :func:`~..folders.sync.sync`.

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
        raise IndexStateError("The index was changed meanwhile; nothing was removed. Run the command again.")


def _matches(item: Item, tests: Sequence[_PathTest | _LabelTest]) -> bool:
    # Every test is asked, not only the first that matches: each has to know whether it was of use.
    return any([test(item) for test in tests])  # noqa: C419


class _PathTest:
    """A path or a pattern."""

    def __init__(self, pattern: str, roots: dict[int, bytes]) -> None:
        self.what = repr(printable(pattern))
        self.used = False
        self._roots = roots
        here = os.fsencode(pattern)
        self._pattern = os.path.abspath(here)  # noqa: PTH100 - bytes, which pathlib does not take
        self._relative = here
        # Roots have no links in their paths: what is named through a link is found by where it leads.
        self._exact = {self._pattern, os.path.realpath(here)}

    def __call__(self, item: Item) -> bool:
        path = os.path.join(self._roots[item.root], item.path)  # noqa: PTH118
        matches = (
            any(path == exact or path.startswith(exact.rstrip(b"/") + b"/") for exact in self._exact)
            or fnmatch.fnmatchcase(path, self._pattern)
            or fnmatch.fnmatchcase(item.path, self._relative)
        )
        self.used |= matches
        return matches


class _LabelTest:
    """A label."""

    def __init__(self, label: str) -> None:
        self.what = f"The label {printable(label)!r}"
        self.used = False
        self._label = label

    def __call__(self, item: Item) -> bool:
        matches = item.label == self._label
        self.used |= matches
        return matches


def _root(path: str | Path, known: dict[int, bytes]) -> int:
    wanted = {os.fsencode(os.path.realpath(path)), os.path.abspath(os.fsencode(path))}  # noqa: PTH100
    for root, known_path in known.items():
        if known_path in wanted:
            return root
    raise QueryError(
        f"{display_path(path)} is not a synced folder; expected "
        f"{' or '.join(display_path(known_path) for known_path in known.values()) or 'one, but there is none'}."
    )
