"""Untrusted text (file names, labels, metadata) made safe to show on one line."""

from __future__ import annotations

import os
import unicodedata

__all__ = ["display_path", "printable"]

# Categories that move the cursor, hide text or reorder it: control, format, surrogate, line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""Return ``text`` with control, format and undecodable characters shown as escapes (``\n``, ``\x1b``)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _UNSAFE else c for c in text)


def display_path(path: str | bytes | os.PathLike[str]) -> str:
    r"""Return a path as one safe line; bytes that are not UTF-8 are shown as ``\xNN``, never dropped."""
    return printable(os.fsdecode(path))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
