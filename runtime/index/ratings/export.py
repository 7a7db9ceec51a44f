"""Write the ratings of an index as a CSV of triplets, which deeprank-eval and other indexes read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...console import to_paste
from ...data.csv_file import written_rows
from ...errors import IndexStateError
from ...files import write_result
from ...text import display_path
from ..database.records import Item
from ..database.store import Store
from .records import Comparison
from .resolution import answers_of
from .store import RatingStore

__all__ = ["COLUMNS", "HASH_COLUMNS", "RatingsExport", "export_ratings", "folder_of_paths"]

COLUMNS = ("query", "positive", "negative")
HASH_COLUMNS = tuple(f"{column}_sha256" for column in COLUMNS)
_HEADER = (*COLUMNS, "rater", "time", *HASH_COLUMNS)


@dataclass(frozen=True)
class RatingsExport:
    """The result of an export, as ``--json`` prints it.

    Attributes:
        ratings: number of rows: comparisons, and pairs of a mark for more and one for less.
        pictures: number of different pictures in them.
        folder: where the paths begin.
        gone: ratings left out because a picture is not in the index.
        unnamed: ratings left out because a CSV cannot hold a picture's path.

    """

    ratings: int
    pictures: int
    folder: str
    gone: int
    unnamed: int


def export_ratings(index: str | Path, target: Path) -> RatingsExport:
    """Write all ratings of pictures that the index has, the oldest first; contradicting ones, too.

    The columns are ``query,positive,negative,rater,time``, and the sha256 of each picture. ``time``
    is in Unix seconds. Paths begin at the synced folder; at the folder above all of them if there
    are several.

    Args:
        index: the index folder.
        target: the file; an earlier one is replaced in one step.

    Raises:
        IndexStateError: there is no index, it has no ratings of its pictures, or the file cannot be
            written.
        IndexDamagedError: a database is damaged.

    """
    folder = Path(index)
    with RatingStore.open(folder) as ratings, Store.open(folder) as store, store.snapshot():
        answers = answers_of(*ratings.ratings())
        contents = {content for each in answers for content in each.contents}
        items = store.items_of_contents(contents)
        synced = set(store.synced_roots())
        chosen = {
            content: min(same, key=lambda item: (item.root not in synced, item.id)) for content, same in items.items()
        }
        base = folder_of_paths(store, {item.root for item in chosen.values()})
        names = _names(chosen, store.roots(), base)
    there = [each for each in answers if items.keys() >= set(each.contents)]
    named = [each for each in there if names.keys() >= set(each.contents)]
    if not named:
        raise IndexStateError(_nothing(folder, len(answers), len(there)))
    write_result(written_rows([_HEADER, *(_row(each, names) for each in named)]), target, IndexStateError)
    pictures = {content for each in named for content in each.contents}
    return RatingsExport(
        len(named), len(pictures), os.fsdecode(base), len(answers) - len(there), len(there) - len(named)
    )


def folder_of_paths(store: Store, used: Iterable[int] = ()) -> bytes:
    """Return the folder at which the paths of a CSV begin: the synced one, or the one above all of them.

    Args:
        store: the pictures.
        used: roots whose pictures are named; the uploads' counts only if it is among them.

    """
    synced, roots = store.synced_roots(), store.roots()
    paths = [*synced.values(), *(roots[root] for root in used if root not in synced)]
    return os.path.commonpath(paths) if paths else b"/"


def _names(items: Mapping[bytes, Item], roots: Mapping[int, bytes], base: bytes) -> dict[bytes, str]:
    """Return the path below ``base`` of each picture that a CSV can name, by content."""
    names = {}
    for content, item in items.items():
        path = os.path.relpath(os.path.join(roots[item.root], item.path), base)  # noqa: PTH118 - bytes
        if _can_be_named(path):
            names[content] = path.decode()
    return names


def _can_be_named(path: bytes) -> bool:
    """Tell whether a path stays the same in a CSV, as :func:`~...data.csv_file.member_path` reads it."""
    try:
        text = path.decode()
    except UnicodeDecodeError:
        return False
    return text == text.strip() and "\\" not in text and ":" not in PurePosixPath(text).parts[0]


def _row(answer: Comparison, names: Mapping[bytes, str]) -> tuple[str | int, ...]:
    paths = (names[content] for content in answer.contents)
    return (*paths, answer.rater or "", answer.time, *(content.hex() for content in answer.contents))


def _nothing(folder: Path, answers: int, there: int) -> str:
    where = display_path(folder)
    if not answers:
        imported = to_paste("deeprank-index", "ratings", "import", "FILE", "--index", folder)
        return (
            f"{where} has no ratings yet. Rate pictures on the page /rate of deeprank-serve --allow-writes, or import "
            f"a CSV with: {imported}"
        )
    if not there:
        return f"All {answers:,} ratings of {where} are of pictures that it no longer has; sync their folders again."
    return f"No picture rated in {where} has a path that a CSV can hold; rename the files, and sync them again."
