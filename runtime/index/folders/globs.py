"""Patterns for paths: which pictures are meant by ``holidays/*`` or ``*.png``."""

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
    """Shell patterns for paths under a synced folder: a path is meant that matches one, or lies in a folder that does.

    ``*`` matches any characters of a name, ``?`` one of them, ``[abc]`` one of these, ``[!abc]`` any other; ``**`` in
    the place of a name matches any number of folders, also none. A pattern without ``/`` matches names at any depth,
    one with ``/`` (but at its end) begins at the synced folder. One that ends in ``/`` matches folders alone. Upper and
    lower case differ; names need not be UTF-8; a ``*`` that is meant literally is written ``[*]``.

    Each part of a pattern takes the first place where it fits and never another one. That is right, because what
    follows can only gain from it, and no pattern makes matching last longer than the product of the lengths allows.

    Args:
        patterns: as they were typed.

    Raises:
        QueryError: a pattern is empty, or can match no path.

    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = tuple(patterns)
        self._match = re.compile("|".join(map(_translated, self.patterns)) or _NOTHING).match

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def matches(self, path: bytes) -> bool:
        """Tell whether the path of a file, relative to the synced folder, matches."""
        return self._match(os.fsdecode(path)) is not None

    def matches_folder(self, path: bytes) -> bool:
        """Tell whether the path of a folder, relative to the synced folder, matches, and so everything in it."""
        return self._match(os.fsdecode(path) + "/") is not None


def _translated(pattern: str) -> str:
    """Return the regular expression of a pattern, for the beginning of a path."""
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
    """Return the expression of names in a row: here, or in any folder below."""
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
    """Return the expressions of what stands before, between and after the stars, each of a fixed length."""
    pieces = [""]
    for character in _characters(name):
        if character != "*":
            pieces[-1] += character
        elif pieces[-1] or len(pieces) == 1:
            pieces.append("")
    return pieces


def _characters(name: str) -> Iterator[str]:
    """Yield an expression for each character that is to be matched, and ``*`` for each star."""
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
    """Return the place of the bracket that ends what begins here, or -1; the first character in it may be one, too."""
    if name[place] != "[":
        return -1
    return name.find("]", place + (3 if name[place + 1 : place + 2] in ("!", "^") else 2))


def _class(content: str) -> str:
    """Return the expression of what stands in brackets."""
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
