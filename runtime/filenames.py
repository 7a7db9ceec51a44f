"""Error messages for a picture name that leads to no picture."""

from __future__ import annotations

import os
import re

__all__ = ["folder_sentence", "missing_sentence"]

# pathlib removes one of the slashes.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
_MAX_SHOWN = 200


def missing_sentence(name: str) -> str:
    """Return why there is no picture, and the remedy.

    Args:
        name: as given, made printable.

    """
    from .console import to_paste
    from .shell import shell_word

    shown = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}..."
    address = _ADDRESS.match(name)
    if address is not None and address[1].lower() == "file":
        from urllib.parse import unquote

        path = shell_word(unquote("/" + name[address.end() :].removeprefix("localhost/")))
        return f"file:///{name[address.end() :]} is an address; expected the file itself: {path}"
    if address is not None:
        url = f"{address[1]}://{name[address.end() :]}"
        command = f"curl -s {shell_word(url)} | {to_paste('deeprank-query', '-')}"
        return f"{url} is an address; pictures are read from files. Try: {command}"
    if name.startswith("data:"):
        return f"{name[:20]}... is a data: address; expected a picture file."
    if name.startswith("~"):
        home = os.path.expanduser(shown)  # noqa: PTH111 - text that need not be a path
        return f"{shown} does not exist: in quotes, the shell leaves ~ as it is; expected {home}"
    if any(character in name for character in "*?["):
        return f"{shown} does not exist: as a pattern, it matches no file here; expected a picture file."
    return f"{shown} does not exist; expected a picture file."


def folder_sentence(name: str) -> str:
    """Return the message for a folder, or for an empty name."""
    if not name:
        return "An empty name was given; expected a picture file."
    return f"{name} is a folder; expected a picture file."
