"""Patterns for paths: which pictures are meant by ``holidays/*`` or ``*.png``."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence

__all__ = ["Globs"]


class Globs:
    """Shell patterns for paths under a synced folder: a path is meant that matches one of them.

    ``*`` matches any characters, ``/`` too; ``?`` one character, ``[abc]`` one of these, ``[!abc]`` any other.
    Upper and lower case differ. Names need not be UTF-8.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = tuple(patterns)
        translated = [fnmatch.translate(os.fsdecode(pattern)) for pattern in self.patterns]
        self._matches = re.compile("|".join(translated) if translated else r"(?!)").match

    def matches(self, path: bytes) -> bool:
        """Tell whether a path, relative to the synced folder, matches one of the patterns."""
        return self._matches(os.fsdecode(path)) is not None
