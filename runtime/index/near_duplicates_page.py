"""The page of ``deeprank-index dedupe``: groups of near-duplicates side by side, and the removable files."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path

from ..contact_sheet import MAX_HITS
from ..text import file_size, printable
from ..webpage.document import document
from ..webpage.elements import Element, count, element, name_text
from ..webpage.gallery import file_address, gallery, tile
from ..webpage.parts import fact, foot, head, note
from ..webpage.thumbnails import Thumbnail, load_thumbnails, sharp_side
from . import presentation
from .search.duplicate_groups import DedupeReport, DuplicateGroup, Keep, Removable
from .search.items import Hit
from .search.pictures import LOCAL, open_picture

__all__ = ["render"]

# Pictures of one group, so that others have room.
_MAX_IN_GROUP = 12
# Paths to copy: a longer list is a task for a terminal.
_MAX_PATHS = 10_000
_KEPT: Mapping[Keep, str] = {
    "largest": "the largest file",
    "oldest": "the oldest file",
    "first": "the first that was synced",
}


@dataclass(frozen=True)
class _Shown:
    """A group and those of its pictures that are shown; the first one is kept."""

    group: DuplicateGroup
    files: Sequence[Hit]


def render(index: Path, report: DedupeReport, files: Removable) -> bytes:
    """Return the page as UTF-8: the groups with the most bytes first, at most ``MAX_HITS`` pictures in all.

    Args:
        index: the index folder.
        report: the groups.
        files: the files that can be removed.

    """
    shown = _bounded(report)
    hits = {hit.path: hit for each in shown for hit in each.files}
    openers = {path: functools.partial(open_picture, LOCAL, hit) for path, hit in hits.items()}
    pictures = load_thumbnails(openers, sharp_side(len(openers)))
    body = element(
        "body",
        "",
        _head(index, report, files),
        element(
            "main",
            "",
            _removable(files),
            element("h2", "unseen", "Groups"),
            element("div", "groups", *(_group(each, pictures) for each in shown)),
            _left_out(report, shown),
        ),
        foot(
            element(
                "p", "", "Distances are squared Euclidean between unit vectors, to the picture to keep: 0 is the same."
            ),
            moment=datetime.now().astimezone(),
        ),
    )
    return document("Near-duplicates", body, (resources.files(__package__) / "near_duplicates.css").read_text("utf-8"))


def _bounded(report: DedupeReport) -> list[_Shown]:
    """Return the groups with the most bytes, with at most ``MAX_HITS`` pictures in all."""
    shown: list[_Shown] = []
    left = MAX_HITS
    for group in sorted(report.groups, key=lambda group: (-group.bytes, os.fsencode(group.kept.path))):
        files = (group.kept, *group.others)[:_MAX_IN_GROUP]
        left -= len(files)
        if left < 0:
            break
        shown.append(_Shown(group, files))
    return shown


def _head(index: Path, report: DedupeReport, files: Removable) -> Element:
    groups, near = len(report.groups), report.near_duplicates
    return head(
        "Near-duplicates",
        (
            fact("near-duplicates", f"{near:,} in {count(groups, 'group')}", strong=True),
            fact("to save", file_size(report.bytes), strong=True),
            fact("index", os.fsdecode(index)),
            fact("pictures", f"{report.pictures:,}"),
            fact("distance at most", f"{report.max_distance:g}"),
            fact("kept", _KEPT[report.keep]),
        ),
        *(note(f"{remark[:1].upper()}{remark[1:]}.") for remark in presentation.removable_notices(files)),
        label="Near-duplicates",
    )


def _removable(files: Removable) -> Element:
    """Return the list of paths to copy; one with characters that a page cannot show is left out."""
    exact = [path for path in files.paths if printable(path) == path]
    listed = exact[:_MAX_PATHS]
    if not files.paths:
        return note("There are no files to remove.", "nothing")
    # The paths are printable, and their line ends are not part of them.
    text = element("pre", {"class": "copied", "tabindex": "0", "aria-label": "Removable files"})
    text.text = "\n".join(listed)
    others = len(files.paths) - len(listed)
    return element(
        "details",
        "removable",
        element("summary", "", f"{count(len(files.paths), 'file')} that can be removed"),
        note("Nothing was deleted. A click selects all paths."),
        text if listed else None,
        note(
            f"{count(others, 'more path')}: not listed here. "
            "deeprank-index dedupe --paths-only --print0 prints all of them, whatever their characters."
        )
        if others
        else None,
    )


def _group(shown: _Shown, pictures: Mapping[str, Thumbnail]) -> Element:
    group = shown.group
    omitted = len(group.others) + 1 - len(shown.files)
    return element(
        "section",
        "group",
        element(
            "h3",
            "",
            count(len(group.others) + 1, "picture"),
            element("span", "gain", f"{file_size(group.bytes)} to save"),
        ),
        gallery([_file(file, group.kept, pictures[file.path]) for file in shown.files], kind="stated", few=False),
        element("p", "more", f"and {count(omitted, 'more picture')}") if omitted else None,
    )


def _file(file: Hit, kept: Hit, thumbnail: Thumbnail) -> Element:
    *folders, name = file.path.split("/")
    is_kept = file is kept
    if is_kept:
        relation = element("p", "kept", "kept")
    elif file.sha256 == kept.sha256:
        relation = element("p", "figures", "same content")
    else:
        relation = element("p", "figures", f"distance {file.distance:.4f}")
    width, height = thumbnail.full
    sizes = [file_size(file.size), *([f"{width:,} × {height:,}"] if width else [])]
    return tile(
        thumbnail,
        f"{'To keep' if is_kept else 'Near-duplicate'}, {name}",
        relation,
        element("p", "file-name", name_text(name)),
        element("p", "place", name_text("/".join(folders[-2:]))),
        element("p", "figures", " · ".join(sizes)),
        element("p", "figures date", _date(file.mtime_ns)),
        address=file_address(file.path),
    )


def _date(mtime_ns: int) -> str:
    """Return a file's date in local time."""
    try:
        return f"{datetime.fromtimestamp(mtime_ns / 1e9).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # a year that no calendar has
        return "no valid date"


def _left_out(report: DedupeReport, shown: Sequence[_Shown]) -> Element | None:
    groups = len(report.groups) - len(shown)
    if not groups:
        return None
    size = report.bytes - sum(each.group.bytes for each in shown)
    return note(f"{count(groups, 'more group')} with {file_size(size)} to save: not shown here.")
