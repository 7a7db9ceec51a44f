"""Entry points of all commands, as ``deeprank COMMAND`` and ``deeprank-COMMAND``.

Imports little, so that Ctrl-C reaches this module rather than an import. Each command parses its
own arguments.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence

from ..console import guarded, refuse_usage, standard_streams
from .commands import COMMANDS, SHORT_FORMS, load

__all__ = ["doctor", "embed", "evaluate", "export", "index", "main", "query", "serve", "teach", "train"]

_USAGE = "deeprank COMMAND ..."
_OTHERS = {
    "sync": "Short for deeprank index sync: bring the index up to date with folders.",
    "completion": "Print the shell completion for bash, zsh or fish.",
    "help": "Show the help of a command.",
}
_EXAMPLES = """\
deeprank sync photos
deeprank query image.jpg
deeprank help train
"""
# Command names of other programs, and ours.
_OTHER_NAMES = {
    **dict.fromkeys(("search", "find", "similar", "ask"), "query"),
    **dict.fromkeys(("evaluate", "test", "measure", "benchmark"), "eval"),
    **dict.fromkeys(("server", "run", "web", "http", "api"), "serve"),
    **dict.fromkeys(("check", "diagnose"), "doctor"),
    **dict.fromkeys(("fit", "learn", "finetune", "fine-tune"), "train"),
    **dict.fromkeys(("convert", "onnx"), "export"),
    **dict.fromkeys(("add", "build", "update"), "sync"),
    **{name: f"index {name}" for name in ("info", "verify", "remove", "compact", "copy", "import", "dedupe")},
}


def main() -> None:
    """Run ``deeprank COMMAND``."""
    with standard_streams():
        run(sys.argv[1:])


def _single(name: str) -> None:
    """Run ``deeprank-NAME``."""
    with standard_streams():
        _load_and_run(name)


train = functools.partial(_single, "train")
export = functools.partial(_single, "export")
teach = functools.partial(_single, "teach")
index = functools.partial(_single, "index")
embed = functools.partial(_single, "embed")
query = functools.partial(_single, "query")
evaluate = functools.partial(_single, "eval")
serve = functools.partial(_single, "serve")
doctor = functools.partial(_single, "doctor")


@guarded
def _load_and_run(name: str) -> None:
    load(name).main()


@guarded
def run(words: Sequence[str]) -> None:
    """Run a command line."""
    name, *rest = words or ["--help"]
    if name == "help":
        name, *rest = [*(word for word in rest if word != "help"), "--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        from .. import __version__

        print(f"deeprank {__version__}")
    elif name == "completion":
        _complete(rest)
    elif name in COMMANDS or name in SHORT_FORMS:
        name, *before = SHORT_FORMS.get(name, (name,))
        sys.argv = [f"deeprank {name}", *before, *rest]
        _load_and_run(name)
    else:
        refuse_usage(_unknown(name), _USAGE)


def _complete(words: Sequence[str]) -> None:
    from .completion import HELP, SHELLS, completion_script

    if words and words[0] in SHELLS and len(words) == 1:
        print(completion_script(words[0]), end="")
    elif not words or words[0] in ("-h", "--help"):
        print(HELP)
    else:
        refuse_usage(f"expected one of {', '.join(SHELLS)}.", "deeprank completion bash|zsh|fish")


def _help() -> str:
    from ..helptext import definitions, examples_section, help_width

    width = help_width()
    commands = [*((name, command.summary) for name, command in COMMANDS.items()), *_OTHERS.items()]
    options = [("--version", "Show the version and exit."), ("-h, --help", "Show this message and exit.")]
    parts = [
        f"usage: {_USAGE}",
        "Similar pictures: learn what that means, and find them.",
        f"commands:\n{definitions(commands, width)}",
        f"options:\n{definitions(options, width)}",
        examples_section(_EXAMPLES),
    ]
    return "\n\n".join(parts)


def _unknown(name: str) -> str:
    """Return the error message for an unknown command."""
    if name.startswith("-"):
        return f"there is no option {name} here; options come after the command."
    here = _OTHER_NAMES.get(name)
    if here is None and os.path.exists(name):  # noqa: PTH110 - text that need not be a path
        from ..shell import shell_word

        here = f"{'sync' if os.path.isdir(name) else 'query'} {shell_word(name)}"  # noqa: PTH112
    if here is None:
        import difflib

        close = difflib.get_close_matches(name, [*COMMANDS, *_OTHERS, *_OTHER_NAMES], 1)
        here = _OTHER_NAMES.get(close[0], close[0]) if close else None
    return f"there is no command {name!r}{f'; did you mean deeprank {here}?' if here else '.'}"
