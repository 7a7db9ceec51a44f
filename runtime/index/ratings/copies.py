"""Take the ratings of an index along to a copy of it."""

from __future__ import annotations

from pathlib import Path

from ...files import Permissions, sync_file, sync_folder
from ..database.backup import back_up
from ..layout import RATINGS, SIDE_FILES
from .store import RatingStore

__all__ = ["carry_ratings"]


def carry_ratings(folder: Path, target: Path, permissions: Permissions, *, shown: Path | None = None) -> None:
    """Copy one state of an index's ratings to another folder, durably; nothing if there are none.

    Args:
        folder: of the index; it may be rated meanwhile.
        target: an existing folder, which no other process uses; earlier ratings are replaced.
        permissions: of the copy.
        shown: the name of that folder in errors.

    Raises:
        IndexStateError, IndexDamagedError: the ratings cannot be read, or the copy not be written.

    """
    for suffix in ("", *SIDE_FILES):
        (target / (RATINGS + suffix)).unlink(missing_ok=True)
    if not (folder / RATINGS).exists():
        return
    with RatingStore.open(folder) as ratings:
        back_up(ratings, target / RATINGS, permissions, shown=(shown or target) / RATINGS)
    sync_file(target / RATINGS)
    sync_folder(target)
