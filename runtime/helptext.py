"""The help layout of all commands: plain text that fits the terminal, option names uncut."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .console import as_typed_line

__all__ = ["command_help", "definitions", "examples_section", "help_width", "option_name", "paragraphs", "usage_line"]

MAX_WIDTH = 100
MIN_WIDTH = 40
COLUMN = 24
_INDENT = "  "


def help_width() -> int:
    """Return the width of help, in columns."""
    return max(MIN_WIDTH, min(shutil.get_terminal_size().columns, MAX_WIDTH))


def paragraphs(text: str, width: int, indent: str = "") -> str:
    """Return text with its paragraphs wrapped; hyphenated words stay whole."""
    return "\n\n".join("\n".join(_wrapped(part, width, indent)) for part in text.strip().split("\n\n"))


def definitions(rows: Iterable[tuple[str, str]], width: int, column: int = COLUMN) -> str:
    """Return (name, meaning) rows as lines in two columns; a long name gets its own line."""
    lines: list[str] = []
    for name, meaning in rows:
        head = _INDENT + name
        body = _wrapped(meaning, width, " " * column)
        if body and len(head) + 2 <= column:
            body[0] = head.ljust(column) + body[0].lstrip()
        else:
            lines.append(head)
        lines += body
    return "\n".join(lines)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def command_help(command: Any, context: Any) -> str:
    """Return the help of a Typer command or group: usage, description, parameters, examples."""
    width = help_width()
    shown = [parameter for parameter in command.get_params(context) if not getattr(parameter, "hidden", False)]
    arguments = [(_argument_name(each), _meaning(each)) for each in shown if each.param_type_name == "argument"]
    panels: dict[str, list[tuple[str, str]]] = {}
    for option in (each for each in shown if each.param_type_name == "option"):
        panel = getattr(option, "rich_help_panel", None) or "options"
        panels.setdefault(panel[0].lower() + panel[1:], []).append((option_name(option), _meaning(option)))
    commands = [
        (name, each.get_short_help_str(limit=1000))
        for name in getattr(command, "commands", {})
        if not (each := command.get_command(context, name)).hidden
    ]
    parts = [f"usage: {usage_line(context)}", paragraphs(command.help or "", width)]
    parts += [
        f"{heading}:\n{definitions(rows, width)}"
        for heading, rows in (("arguments", arguments), ("commands", commands), *panels.items())
        if rows
    ]
    if command.epilog:
        parts.append(examples_section(command.epilog))
    return "\n\n".join(parts) + "\n"


def examples_section(examples: str) -> str:
    """Return the examples section at the end of a help."""
    return "\n".join(["examples:", *(f"{_INDENT}{as_typed_line(line)}" for line in examples.splitlines())])


def usage_line(context: Any) -> str:
    """Return the command and its arguments."""
    command = context.command
    arguments = [_usage_of(each) for each in command.get_params(context) if each.param_type_name == "argument"]
    arguments += ["COMMAND ..."] if hasattr(command, "commands") else []
    return " ".join([context.command_path, "[OPTIONS]", *arguments])


def _usage_of(argument: Any) -> str:
    name = _argument_name(argument) + (" ..." if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


def _argument_name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper()).removesuffix("...").removeprefix("[").removesuffix("]")


def option_name(option: Any) -> str:
    """Return an option's names, the short one first, and its argument."""
    names = sorted([*option.opts, *option.secondary_opts], key=lambda name: name.startswith("--"))
    if option.is_flag or option.count:
        return ", ".join(names)
    return f"{', '.join(names)} {option.metavar or names[-1].rpartition('-')[2].upper()}"


def _meaning(parameter: Any) -> str:
    default = _default(parameter)
    if parameter.envvar and parameter.param_type_name == "option":
        default = f"${parameter.envvar}{f', then {default}' if default else ''}"
    return (parameter.help or "") + (f" (default: {default})" if default else "")


def _default(parameter: Any) -> str:
    """Return a default value as one would type it; empty if it is not shown."""
    if isinstance(parameter.show_default, str) or not parameter.show_default:
        return parameter.show_default or ""
    if isinstance(parameter.default, bool):
        return "" if not parameter.secondary_opts else (parameter.secondary_opts, parameter.opts)[parameter.default][0]
    if isinstance(parameter.default, int | float):
        return f"{parameter.default:.12g}"
    return str(parameter.default) if isinstance(parameter.default, str | Path) else ""
