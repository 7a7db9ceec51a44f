"""Commands that can be pasted into a shell, whatever the names in them are."""

from __future__ import annotations

import os
import shlex
import sys

from ..text import printable

__all__ = ["pip", "shell_word"]


def pip(*words: str) -> str:
    """Return a command of pip for the Python that runs here; ``words`` are quoted as they need it."""
    return " ".join([shell_word(sys.executable or "python"), "-m", "pip", *map(shell_word, words)])


def shell_word(word: str | os.PathLike[str]) -> str:
    r"""Return a word as a POSIX shell takes it; one that cannot be shown as it is, as bash and zsh do: ``$'a\nb'``."""
    text = os.fsdecode(word)
    if printable(text) == text:
        return shlex.quote(text)
    return f"$'{''.join(map(_in_dollar_quotes, text))}'"


def _in_dollar_quotes(character: str) -> str:
    code = ord(character)
    if character in "\\'":
        return f"\\{character}"
    if printable(character) == character:
        return character
    if code < 0x80 or 0xDC80 <= code <= 0xDCFF:  # a byte
        return f"\\x{code & 0xFF:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
