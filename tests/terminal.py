"""A terminal for tests: a command under a pseudo-terminal, and the lines that its user would see."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping
from pathlib import Path

from deeprank.runtime.text import display_width

# What terminals set; a test names its own.
_OF_TERMINALS = (
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_HYPERLINK",
    "TERM_PROGRAM",
    "VTE_VERSION",
    "WT_SESSION",
    "TMUX",
    "STY",
)
_ESCAPE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b\]([^\x1b\x07]*)(?:\x1b\\|\x07)")


def environment(**variables: str) -> dict[str, str]:
    """Return the environment without a terminal's variables, but with these."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_TERMINALS and "KITTY" not in name}
    return {**kept, "TERM": "xterm-256color", **variables}


def in_terminal(
    command: list[str], cwd: Path, *, columns: int = 80, variables: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command with all streams on a terminal; return its status and everything that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    written: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            while block := os.read(ours, 65536):
                written.append(block)

    process = subprocess.Popen(
        command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**(variables or {}))
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    status = process.wait(240)
    reader.join()
    os.close(ours)
    return status, b"".join(written).decode()


def screen(written: str, columns: int) -> list[str]:
    """Return the lines that stay on a terminal; fail where one is wider than it.

    Knows line feeds, carriage returns, CSI A (up), CSI K (erase), and passes over colours, the cursor's look and links.
    """
    lines, row, column, at = [""], 0, 0, 0
    while at < len(written):
        escape = _ESCAPE.match(written, at)
        if escape:
            at = escape.end()
            if escape[2] == "A":
                row = max(0, row - int(escape[1] or 1))
            elif escape[2] == "K":
                lines[row] = "" if escape[1] == "2" else lines[row][:column]
            else:
                assert escape[2] in ("m", "h", "l", None), escape[0]
            continue
        character, at = written[at], at + 1
        if character == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif character == "\r":
            column = 0
        else:
            assert character >= " ", repr(character)
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
            assert display_width(lines[row]) <= columns, lines[row]
    return [line.rstrip() for line in lines]


def links(written: str) -> dict[str, str]:
    """Return the addresses of the links, by the text that shows them."""
    return {
        text: address for address, text in re.findall(r"\x1b\]8;;([^\x1b]+)\x1b\\([^\x1b]*)\x1b\]8;;\x1b\\", written)
    }
