"""Filters in the language of Milvus; all text from users is quoted here.

Templates with parameters, which would spare the quoting, are unknown to older servers and to Milvus
Lite. So is an escape for the wildcards of ``like``: a folder is a range of paths instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ...errors import QueryError
from ...text import printable

__all__ = ["both", "folder_of", "in_folder", "one_of", "quoted"]

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED = re.compile("|".join(map(re.escape, _ESCAPES)))
# A class of one character stands for that character, as in [*].
_LITERAL = re.compile(r"\[([^]!^])\]|\[(\])\]")
_WILDCARDS = re.compile(r"[*?\[]")


def quoted(text: str) -> str:
    """Return a string literal.

    Raises:
        QueryError: the text is not Unicode, as no text of a store is, or holds a NUL.

    """
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "\0"
    if "\0" in text:
        raise QueryError(f"{printable(text)!r} is no text that a store can hold; expected Unicode without NUL.")
    return '"' + _ESCAPED.sub(lambda match: _ESCAPES[match[0]], text) + '"'


def one_of(field: str, values: Iterable[str]) -> str:
    """Return the filter of rows whose text field has one of these values."""
    return f"{field} in [{', '.join(map(quoted, values))}]"


def in_folder(folder: str) -> str:
    """Return the filter of rows whose path is below a folder: it begins with the folder and a slash."""
    following = chr(ord("/") + 1)
    return f"(path >= {quoted(folder + '/')} and path < {quoted(folder + following)})"


def both(filters: Sequence[str]) -> str:
    """Return the filter of rows that pass all filters; "" passes all rows."""
    return " and ".join(f"({each})" for each in filters if each)


def folder_of(pattern: str) -> str:
    """Return the folder in a pattern ``FOLDER/*``, which is all that a store can look for.

    Raises:
        QueryError: it is another pattern.

    """
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    folders = [_literal(name) for name in names[:-1]]
    if pattern.startswith("/") or pattern.endswith("/") or not folders or names[-1] != "*" or None in folders:
        raise QueryError(
            f"The pattern {printable(pattern)!r} is not possible in a store; expected FOLDER/*, relative to the "
            "folder that was embedded, with [*] for a * in its name."
        )
    return "/".join(name for name in folders if name is not None)


def _literal(name: str) -> str | None:
    """Return the only name that a part of a pattern matches; None: it matches several, or none."""
    if name == ".." or _WILDCARDS.search(_LITERAL.sub("", name)):
        return None
    return _LITERAL.sub(lambda match: match[1] or match[2], name)
