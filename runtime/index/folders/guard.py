"""Refuse folders that are missing, without pictures, or like an unmounted drive."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ...console import to_paste
from ...errors import IndexStateError
from ...shell import shell_word
from ...text import display_path, printable
from ..walk import Walk

if TYPE_CHECKING:
    from .plan import RootPlan

__all__ = ["check_losses", "check_present"]

# With this many items, losing more than this share looks like an unmounted drive.
_GUARDED_ITEMS = 20
_MOST_LOST = 0.5
# Extensions of other files named in a message.
_KINDS = 5


def check_present(path: bytes, known: bool, may_be_missing: bool) -> None:
    """Refuse a missing folder, unless the index knows it (``known``) and it ``may_be_missing``."""
    folder = Path(os.fsdecode(path))
    if folder.is_dir() or (known and may_be_missing and not folder.exists()):
        return
    found = "is not a folder" if folder.exists() else "does not exist"
    remove = to_paste("deeprank-index", "remove", "--root", folder)
    advice = (
        f" If it is on a drive that is not mounted, mount it; if it has moved, sync with --root {shell_word(folder)}="
        f"NEW; if it is gone for good, take its pictures out with: {remove} "
        "(or sync it with --allow-mass-removal)."
    )
    raise IndexStateError(f"{display_path(path)} {found}; expected a folder of pictures.{advice if known else ''}")


def check_losses(plan: RootPlan, keep_missing: bool) -> None:
    """Refuse changes that look like an unmounted drive (an empty folder) or a mistake."""
    nothing_found = not plan.walk.files and not plan.walk.unread
    if nothing_found and (plan.walk.left_out or plan.walk.left_out_folders) and (plan.left_out or not plan.known):
        _refuse_filters(plan)
    known = plan.known + len(plan.left_out)
    if nothing_found and not (keep_missing and known):
        _refuse_empty(plan, known)
    if keep_missing:
        return
    if plan.was is not None and plan.known == len(plan.missing) > 0 and not _likely_moves(plan):
        raise IndexStateError(
            f"{display_path(plan.path)} holds none of the {plan.known:,} pictures of {display_path(plan.was)}: is it "
            "the right folder? Nothing was changed; if they are really gone, sync with --allow-mass-removal."
        )
    lost = len(plan.missing) - _likely_moves(plan)
    if plan.known >= _GUARDED_ITEMS and lost > _MOST_LOST * plan.known:
        raise IndexStateError(
            f"{display_path(plan.path)} has lost {lost:,} of its {plan.known:,} pictures: is a drive not mounted? "
            "Nothing was changed; if they are really gone, sync with --allow-mass-removal."
        )


def _refuse_filters(plan: RootPlan) -> None:
    fate = f", though {len(plan.left_out):,} of the index come from there" if plan.left_out else ""
    if not plan.filters:
        folders = ", ".join(sorted(map(printable, plan.walk.of_tools)))
        raise IndexStateError(
            f"{display_path(plan.path)} holds no pictures but in folders that tools keep ({folders}), which are left "
            f"out{fate}. Nothing was changed; expected a folder of photographs, or --include with such a name."
        )
    raise IndexStateError(
        f"{plan.filters} leaves no picture of {display_path(plan.path)}{fate}. Nothing was changed; expected patterns "
        "for paths below that folder (or --no-filters)."
    )


def _refuse_empty(plan: RootPlan, known: int) -> None:
    if known == 0:
        raise IndexStateError(
            f"{display_path(plan.path)} holds no pictures ({_others_in(plan.walk)}); expected JPEG, PNG, WebP, GIF, "
            "BMP, TIFF, AVIF or HEIC files in it or below it, or --include '*.xyz' for pictures with another extension."
        )
    raise IndexStateError(
        f"{display_path(plan.path)} holds no pictures, but {known:,} of the index come from there: is a drive not "
        "mounted? Nothing was changed; if they are really gone, sync with --allow-mass-removal."
    )


def _others_in(found: Walk) -> str:
    """Return a phrase that counts other files by extension."""
    count, named = found.unknown.total(), found.unknown.most_common(_KINDS)
    kinds = [f"{number:,} {printable(kind) or 'without extension'}" for kind, number in named]
    kinds += ["…"] if len(found.unknown) > _KINDS else []
    return f"{count:,} other file{'' if count == 1 else 's'}{': ' if kinds else ''}{', '.join(kinds)}"


def _likely_moves(plan: RootPlan) -> int:
    """Count the missing items with a new file of equal size and mtime: a renamed folder."""
    new = Counter((found.size, found.mtime_ns) for found in plan.new)
    missing = Counter((item.size, item.mtime_ns) for item in plan.missing)
    return (new & missing).total()
