"""Make untrusted text (file names, labels, metadata) safe to show on one line."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Sequence

__all__ = [
    "display_path",
    "display_width",
    "duration",
    "file_size",
    "first_line",
    "markdown_table",
    "printable",
    "short_duration",
    "shortened",
    "wrapped",
]

# Categories that move the cursor, hide text or reorder it: control, format, surrogate, line and
# paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Marks above, below and around the preceding letter.
_WITHOUT_WIDTH = frozenset({"Mn", "Me"})
# Characters of another library's message that are shown.
_MAX_LINE = 300


def printable(text: str) -> str:
    r"""Return ``text`` with control, format and undecodable characters as escapes (``\x1b``)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _UNSAFE else c for c in text)


def display_path(path: str | bytes | os.PathLike[str]) -> str:
    r"""Return a path as one safe line; non-UTF-8 bytes appear as ``\xNN``, never dropped."""
    return printable(os.fsdecode(path))


def first_line(error: BaseException, *, named: bool = False) -> str:
    """Return the first line of another library's error, safe and at most 300 characters, to show in brackets.

    Args:
        error: without a message, the name of its type is returned.
        named: put the name of the type before the message.

    """
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return kind
    return printable(f"{kind}: {lines[0][:_MAX_LINE]}" if named else lines[0][:_MAX_LINE])


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right_aligned: Collection[int] = ()
) -> list[str]:
    r"""Return the lines of a Markdown table, padded so that its columns line up as plain text.

    Args:
        header: the name of each column.
        rows: as many cells each; untrusted text is allowed: ``|`` is escaped, and :func:`printable`
            is applied.
        right_aligned: the columns of numbers, counted from 0.

    """
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(display_width, column)) for column in zip(*cells, strict=True)]
    right = [place in right_aligned for place in range(len(widths))]
    rule = ["-" * (width - 1) + ":" if is_right else "-" * width for width, is_right in zip(widths, right, strict=True)]
    padded = [
        [_padded(cell, width, is_right) for cell, width, is_right in zip(row, widths, right, strict=True)]
        for row in cells
    ]
    return [f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:])]


def display_width(text: str) -> int:
    """Return the terminal columns of ``text``: East Asian wide characters take two."""
    if text.isascii():
        return len(text)
    return sum(map(_character_width, text))


def duration(seconds: float) -> str:
    """Return a readable time in whole seconds: ``7 s``, ``3 min 20 s``, ``2 h 05 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def short_duration(seconds: float) -> str:
    """Return a time in at most 8 columns: ``4.2 s``, ``12.5 min``, ``2.1 h``."""
    for unit, length in (("s", 60.0), ("min", 60.0)):
        if round(seconds, 1) < length:
            return f"{seconds:.1f} {unit}"
        seconds /= 60
    return f"{seconds:.1f} h" if seconds < 999.95 else f"{seconds:.0f} h"


def file_size(size: int) -> str:
    """Return a readable file size: ``812 bytes``, ``45.2 kB``, ``3.1 GB``."""
    if size < 1000:
        return f"{size} byte{'' if size == 1 else 's'}"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"


def shortened(text: str, width: int, *, ellipsis: str = "…") -> str:
    """Return untrusted text, printable, cut in its middle to at most ``width`` columns.

    Escapes stay whole, and accents stay with their letters.

    Args:
        text: not yet escaped.
        width: terminal columns; at least the width of the ellipsis.
        ellipsis: replaces the part that is cut.

    """
    whole = printable(text)
    if display_width(whole) <= width:
        return whole
    room = max(0, width - display_width(ellipsis))
    parts = _parts(text)
    tail = _fitting(reversed(parts), room - room // 2)
    head = _fitting(iter(parts), room - sum(map(display_width, tail)))
    return "".join([*head, ellipsis, *reversed(tail)])


def wrapped(text: str, width: int, *, indent: int = 0) -> list[str]:
    """Return printable text as lines of at most ``width`` columns, broken at blanks; longer words stay whole.

    Args:
        text: one line.
        width: terminal columns.
        indent: blanks at the start of each line but the first.

    """
    lines, line = [], ""
    for word in text.split(" "):
        if line.strip() and display_width(f"{line} {word}") > width:
            lines.append(line)
            line = " " * indent + word
        else:
            line = f"{line} {word}" if line or lines else word
    return [*lines, line]


def _parts(text: str) -> list[str]:
    """Return the pieces between which text may be cut: characters with accents, or escapes."""
    parts: list[str] = []
    for character in text:
        shown = printable(character)
        if parts and display_width(shown) == 0:
            parts[-1] += shown
        else:
            parts.append(shown)
    return parts


def _fitting(parts: Iterable[str], room: int) -> list[str]:
    """Return the first parts that fit."""
    fitting = []
    for part in parts:
        room -= display_width(part)
        if room < 0:
            break
        fitting.append(part)
    return fitting


def _character_width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in _WITHOUT_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - display_width(cell))
    return space + cell if right else cell + space


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
