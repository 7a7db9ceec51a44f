"""Links to files on a terminal: the escape sequence OSC 8, where the terminal is known to show it."""

from __future__ import annotations

import os
import socket
import urllib.parse
from collections.abc import Mapping

from .text import display_path

__all__ = ["file_address", "file_link", "shows_links"]

# Terminals by the variables that they set. VTE's older versions crash at such a link.
_VARIABLES = ("WT_SESSION", "KITTY_WINDOW_ID", "KONSOLE_VERSION", "WEZTERM_EXECUTABLE", "GHOSTTY_RESOURCES_DIR")
_PROGRAMS = frozenset({"iTerm.app", "vscode", "WezTerm", "ghostty", "Hyper", "Tabby", "rio"})
_TERMS = frozenset({"xterm-kitty", "xterm-ghostty", "alacritty", "foot", "foot-extra", "wezterm", "contour"})
_FIRST_VTE = 5000
# Programs between us and the terminal, which may not pass the sequence on.
_BETWEEN = ("screen", "tmux")


def shows_links(environment: Mapping[str, str]) -> bool:
    """Tell whether the terminal of this environment is known to show links.

    ``FORCE_HYPERLINK`` set to 1 or 0 overrides what is known of it, except with ``NO_COLOR`` or
    ``TERM=dumb``: neither wants escape sequences.
    """
    term = environment.get("TERM", "")
    if environment.get("NO_COLOR") or term == "dumb":
        return False
    forced = environment.get("FORCE_HYPERLINK")
    if forced:
        return forced != "0"
    if term.startswith(_BETWEEN) or "TMUX" in environment or "STY" in environment:
        return False
    vte = environment.get("VTE_VERSION", "")
    return (
        any(name in environment for name in _VARIABLES)
        or environment.get("TERM_PROGRAM") in _PROGRAMS
        or term in _TERMS
        or (vte.isdecimal() and int(vte) >= _FIRST_VTE)
    )


def file_link(path: str | os.PathLike[str], text: str | None = None) -> str:
    """Return ``text``, or else the path, as a link to the file; all of it is safe to print."""
    shown = display_path(path if text is None else text)
    return f"\x1b]8;;{file_address(path)}\x1b\\{shown}\x1b]8;;\x1b\\"


def file_address(path: str | os.PathLike[str]) -> str:
    """Return the ``file:`` address of a path; by the host's name, a terminal elsewhere knows that it is not its own."""
    whole = os.fsencode(os.path.abspath(path))  # noqa: PTH100 - links in the path stay
    if os.sep != "/":
        whole = b"/" + whole.replace(os.fsencode(os.sep), b"/")
    return f"file://{urllib.parse.quote(socket.gethostname())}{urllib.parse.quote(whole)}"
