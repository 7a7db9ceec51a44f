"""Folders that file servers, systems and photo programs create beside pictures."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

__all__ = ["is_hidden_tool_folder", "is_in_tool_folder", "tool_folders"]

# Thumbnails, trash, other forms of pictures; in any letter case. No photo folder has such a name.
_FILE_SERVERS = "@eaDir #recycle #snapshot ~snapshot @Recycle @Recently-Snapshot @__thumb @tmp @sharebin"
_SYSTEMS = "$RECYCLE.BIN lost+found __MACOSX Thumbs.db ehthumbs.db TheVolumeSettingsFolder"
_PROGRAMS = (
    "*.lrdata *.lrcat-data *.photoslibrary/resources *.photolibrary/Thumbnails *.photolibrary/Previews "
    "*.migratedphotolibrary/Thumbnails *.aplibrary/Thumbnails *.aplibrary/Previews CaptureOne/Cache appdata_oc*/preview"
)
# Other hidden folders are never read; these can be requested by name.
_HIDDEN = [".thumbnails", ".thumbs", ".@__thumb", ".@__desc", ".picasaoriginals", ".AppleDouble", ".Trashes"]
_FOLDERS = (
    *_HIDDEN,
    *f"{_FILE_SERVERS} {_SYSTEMS} {_PROGRAMS}".split(),
    *("System Volume Information", "Network Trash Folder", "iPod Photo Cache"),
)

_HIDDEN_NAMES = frozenset(name.lower() for name in _HIDDEN)


def tool_folders(named: Iterable[str] = ()) -> re.Pattern[str]:
    """Return a pattern that finds such a folder in a relative path that ends in ``/``.

    Args:
        named: folder names to keep, in any letter case.

    """
    # Not Globs: every folder of a walk is tested, and these patterns are few and simple.
    kept = {name.lower() for name in named}
    left_out = [re.escape(folder) for folder in _FOLDERS if kept.isdisjoint(folder.lower().split("/"))]
    return re.compile(rf"(?:\A|/)(?:{'|'.join(left_out)})/".replace(r"\*", "[^/]*"), re.IGNORECASE)


def is_hidden_tool_folder(name: str) -> bool:
    """Tell whether this is the name of a hidden tool folder."""
    return name.lower() in _HIDDEN_NAMES


def is_in_tool_folder(path: str) -> bool:
    """Tell whether the file at a relative posix path lies in such a folder."""
    return _all().search(path) is not None


@functools.cache
def _all() -> re.Pattern[str]:
    return tool_folders()
