"""Patterns for paths, such as ``holidays/*`` or ``*.png``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from ...errors import QueryError
from ...text import printable

__all__ = ["Globs"]

_END = r"(?=/|\Z)"
_FOLDERS = r"(?:[^/]++/)*?"
_NOTHING = r"(?!)"


class Globs:
    """Shell patterns for paths under a synced folder; matching a folder includes its contents.

    ``*`` matches any characters of a name, ``?`` one of them, ``[abc]`` one of these, ``[!abc]``
    any other; ``**`` in place of a name matches any number of folders, also none. A pattern without
    ``/`` matches names at any depth; with ``/`` (except at its end) it starts at the synced folder.
    A pattern that ends in ``/`` matches only folders. Case matters; names need not be UTF-8; a
    literal ``*`` is written ``[*]``.

    Each part of a pattern takes the first place where it fits and never another one. This is
    correct, because an earlier place never rules out a later match. Matching takes at most the
    product of the lengths.

    Args:
        patterns: as typed.

    Raises:
        QueryError: a pattern is empty, or can match no path.

    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = tuple(patterns)
        self._match = re.compile("|".join(map(_translated, self.patterns)) or _NOTHING).match

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def matches(self, path: bytes) -> bool:
        """Tell whether a file's path, relative to the synced folder, matches."""
        return self._match(os.fsdecode(path)) is not None

    def matches_folder(self, path: bytes) -> bool:
        """Tell whether a folder's path, relative to the synced folder, matches with all inside."""
        return self._match(os.fsdecode(path) + "/") is not None


def _translated(pattern: str) -> str:
    """Return a pattern's regular expression, anchored at the start of a path."""
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    if not names or ".." in names or "\0" in pattern:
        raise QueryError(
            f"The pattern {printable(pattern)!r} matches no path; expected one for paths below the synced folder, such "
            "as '*.png', 'holidays/*' or 'raw'."
        )
    if "/" not in pattern.rstrip("/"):
        names.insert(0, "**")
    *leading, last = _runs(names)
    end = "/" if pattern.endswith("/") else _END
    parts = [_run(run, "/", place > 0) for place, run in enumerate(leading) if run]
    parts.append(_run(last, end, bool(leading)) if last else "[^/]" if end == _END else "[^/]++/")
    return "".join(parts)


def _runs(names: Sequence[str]) -> list[list[str]]:
    """Split names at each ``**``."""
    runs: list[list[str]] = [[]]
    for name in names:
        if name == "**":
            runs.append([])
        else:
            runs[-1].append(name)
    return runs


def _run(names: Sequence[str], end: str, below: bool) -> str:
    """Return the expression of adjacent names: here, or in any folder below."""
    found = "/".join(map(_name, names)) + end
    return f"(?>{_FOLDERS}{found})" if below else found


def _name(name: str) -> str:
    """Return the expression of one name."""
    first, *others = _pieces(name)
    if not others:
        return first
    *middle, last = others
    if not (first or last or middle):
        return "[^/]++"
    tail = f"(?>[^/]*{last}{_END})" if last else "[^/]*+"
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle) + tail


def _pieces(name: str) -> list[str]:
    """Return the expressions before, between and after the stars, each of a fixed length."""
    pieces = [""]
    for character in _characters(name):
        if character != "*":
            pieces[-1] += character
        elif pieces[-1] or len(pieces) == 1:
            pieces.append("")
    return pieces


def _characters(name: str) -> Iterator[str]:
    """Yield an expression for each character, and ``*`` for each star."""
    place = 0
    while place < len(name):
        character = name[place]
        end = _class_end(name, place)
        if end > 0:
            yield _class(name[place + 1 : end])
            place = end
        else:
            yield {"*": "*", "?": "[^/]"}.get(character) or re.escape(character)
        place += 1


def _class_end(name: str, place: int) -> int:
    """Return the place of the closing bracket, or -1; the first character may be a bracket, too."""
    if name[place] != "[":
        return -1
    return name.find("]", place + (3 if name[place + 1 : place + 2] in ("!", "^") else 2))


def _class(content: str) -> str:
    """Return the expression for the content of brackets."""
    negated = content[0] in "!^"
    members, place = "", int(negated)
    while place < len(content):
        first, last = content[place], content[place]
        if content[place + 1 : place + 2] == "-" and place + 2 < len(content):
            last = content[place + 2]
            place += 2
        if first <= last:
            members += f"{re.escape(first)}-{re.escape(last)}"
        place += 1
    if negated:
        return f"[^/{members}]"
    return f"(?!/)[{members}]" if members else _NOTHING
