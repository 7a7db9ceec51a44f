"""Commands to paste into a shell, safe for any file name."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from pathlib import Path

from .text import printable

__all__ = ["DISTRIBUTION", "install_extra", "pip", "shell_command", "shell_word", "source_of_deeprank"]

DISTRIBUTION = "deep-ranking"


def pip(*words: str) -> str:
    """Return a pip command for the running Python; ``words`` are quoted where needed.

    In an environment without pip, the command first installs it.
    """
    python = shell_word(sys.executable or "python")
    command = " ".join([python, "-m", "pip", *map(shell_word, words)])
    return command if _has_pip() else f"{python} -m ensurepip && {command}"


@functools.cache  # a decoding process cannot open files later
def _has_pip() -> bool:
    from importlib.util import find_spec

    return find_spec("pip") is not None


def install_extra(extra: str) -> str:
    """Return the command that installs an extra's packages here, by deeprank's metadata."""
    return pip("install", *(_packages_of(extra) or [f"{source_of_deeprank()}[{extra}]"]))


def source_of_deeprank() -> str:
    """Return pip's source for deeprank: this code's checkout, else the package name."""
    checkout = Path(__file__).resolve().parent.parent
    return str(checkout) if (checkout / "pyproject.toml").is_file() else DISTRIBUTION


def shell_command(*words: str | os.PathLike[str]) -> str:
    """Return a command quoted for a POSIX shell."""
    return " ".join(map(shell_word, words))


def shell_word(word: str | os.PathLike[str]) -> str:
    r"""Return a word quoted for a POSIX shell; unprintable ones as bash and zsh do: ``$'a\nb'``."""
    text = os.fsdecode(word)
    if printable(text) == text:
        return shlex.quote(text)
    return f"$'{''.join(map(_in_dollar_quotes, text))}'"


def _packages_of(extra: str) -> list[str]:
    """Return the requirements of an extra that apply to this system, without their markers."""
    from importlib import metadata

    try:
        from packaging.requirements import Requirement

        lines = metadata.requires(DISTRIBUTION) or []
    except ImportError:  # deeprank is not installed as a package, or a requirement is missing
        return []
    packages = []
    for requirement in map(Requirement, lines):
        marker, requirement.marker = requirement.marker, None
        if marker is not None and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra}):
            packages.append(str(requirement))
    return packages


def _in_dollar_quotes(character: str) -> str:
    code = ord(character)
    if character in "\\'":
        return f"\\{character}"
    if printable(character) == character:
        return character
    if code < 0x80 or 0xDC80 <= code <= 0xDCFF:  # a byte
        return f"\\x{code & 0xFF:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
