"""Shell completion: self-contained scripts, so that no key press waits for Python."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MissingExtraError
from .commands import COMMANDS, SHORT_FORMS, load

__all__ = ["HELP", "SHELLS", "completion_script"]

_DEVICES = ("auto", "cpu", "cuda")
_INDEX = "index"
_RATINGS = "index ratings"

HELP = """\
usage: deeprank completion bash|zsh|fish

Print the shell completion of the commands. For this session only:

  eval "$(deeprank completion bash)"
  eval "$(deeprank completion zsh)"        after compinit
  deeprank completion fish | source

For every session, put it where the shell looks for it:

  deeprank completion bash > ~/.local/share/bash-completion/completions/deeprank
  deeprank completion zsh > "${fpath[1]}/_deeprank"
  deeprank completion fish > ~/.config/fish/completions/deeprank.fish

In bash, that file completes only deeprank. For deeprank-query and the other
commands too, put this line in ~/.bashrc: source <(deeprank completion bash)"""


@dataclass(frozen=True)
class Option:
    """An option: its names, help, allowed values, and whether it takes a value."""

    names: tuple[str, ...]
    meaning: str
    takes_value: bool
    values: tuple[str, ...] = ()
    folders: bool = False


# The options by command; "index sync" for a subcommand, "index" for those before it.
Options = Mapping[str, Sequence[Option]]


def completion_script(shell: str) -> str:
    """Return the script for one of :data:`SHELLS`."""
    return SHELLS[shell](dict(_options()))


def _options() -> Iterator[tuple[str, Sequence[Option]]]:
    """Yield the options of each command that can be imported here."""
    for name in COMMANDS:
        try:
            module = load(name)
        except MissingExtraError:
            continue
        if hasattr(module, "app"):
            from typer.main import get_command

            command: Any = get_command(module.app)
            yield name, list(_of_typer(command))
            for part, subcommand in getattr(command, "commands", {}).items():
                yield f"{name} {part}", list(_of_typer(subcommand))
                for inner, last in getattr(subcommand, "commands", {}).items():
                    yield f"{name} {part} {inner}", list(_of_typer(last))
        else:
            from ..query.arguments import make_parser

            yield name, list(_of_argparse(make_parser()))


def _of_typer(command: Any) -> Iterator[Option]:
    for each in command.params:
        if each.param_type_name == "option":
            takes_value = not (each.is_flag or each.count)
            names = (*each.opts, *each.secondary_opts)
            yield _option(names, each.help or "", takes_value, str(each.metavar or ""))
    yield Option(("-h", "--help"), "Show this message and exit.", takes_value=False)


def _of_argparse(parser: argparse.ArgumentParser) -> Iterator[Option]:
    for action in parser._actions:
        if action.option_strings:
            metavar = "|".join(map(str, action.choices)) if action.choices else str(action.metavar or "")
            yield _option(tuple(action.option_strings), action.help or "", action.nargs != 0, metavar)


def _option(names: tuple[str, ...], meaning: str, takes_value: bool, metavar: str) -> Option:
    values = tuple(metavar.split("|")) if "|" in metavar and metavar.islower() else ()
    if "--device" in names:
        values = _DEVICES
    short = meaning.partition(". ")[0].partition("; ")[0].removesuffix(".")
    return Option(
        names, " ".join(short.split()), takes_value, values if takes_value else (), metavar.split("|")[0] == "DIR"
    )


def _subcommands(options: Options, group: str = _INDEX) -> list[str]:
    """Return the commands directly below a group, such as "index" or "index ratings"."""
    return [key.rpartition(" ")[2] for key in options if key.rpartition(" ")[0] == group]


def _programs(options: Options) -> list[str]:
    return ["deeprank", *(f"deeprank-{key}" for key in options if " " not in key)]


def _first_words(options: Options) -> list[str]:
    return [*(key for key in options if " " not in key), *SHORT_FORMS, "completion", "help", "--version", "--help"]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _value_cases(options: Options, known: Callable[[Sequence[str]], str], other: str) -> tuple[str, str]:
    """Return a case for each option that takes a value, and the pattern of the options that take a folder.

    Args:
        options: of all commands.
        known: makes the shell's words for an option whose values are known.
        other: the shell's words for one that takes any other value.

    """
    cases, folders = [], []
    for key, listed in options.items():
        for option in listed:
            pattern = "|".join(_quoted(f"{key} {name}") for name in option.names)
            if option.folders and not option.values:
                folders.append(pattern)
            elif option.takes_value:
                cases.append(f"        {pattern}) {known(option.values) if option.values else other} ;;")
    return "\n".join(cases), "|".join(folders) or "' '"


def _bash(options: Options) -> str:
    names = {key: " ".join(name for each in listed for name in each.names) for key, listed in options.items()}
    words = "\n".join(f"        {_quoted(key)}) words={_quoted(text)} ;;" for key, text in names.items())
    cases, folders = _value_cases(options, lambda values: f"words={_quoted(' '.join(values))}", "return")
    return f"""\
# Completion of deeprank for bash, made by: deeprank completion bash
_deeprank() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} words=''
    local command=${{COMP_WORDS[0]##*/}} first=1
    COMPREPLY=()
    if [[ $command == deeprank ]]; then
        if ((COMP_CWORD == 1)); then
            COMPREPLY=($(compgen -W {_quoted(" ".join(_first_words(options)))} -- "$current"))
            return
        fi
        command=${{COMP_WORDS[1]}} first=2
    fi
    command=${{command#deeprank-}}
    case $command in
        help) words={_quoted(" ".join(_first_words(options)))} ;;
        completion) words='bash zsh fish' ;;
        sync) command='index sync' ;;
        index)
            if ((COMP_CWORD == first)); then
                words={_quoted(" ".join([*_subcommands(options), "--version", "--help"]))}
            else
                command="index ${{COMP_WORDS[first]}}"
            fi ;;
    esac
    if [[ $command == {_quoted(_RATINGS)} ]]; then
        if ((COMP_CWORD == first + 1)); then
            words={_quoted(" ".join([*_subcommands(options, _RATINGS), "--help"]))}
        else
            command="{_RATINGS} ${{COMP_WORDS[first + 1]}}"
        fi
    fi
    if [[ -n $words ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
        return
    fi
    case "$command $previous" in
        {folders})
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -d -- "$current")
            return ;;
{cases}
    esac
    if [[ -z $words && $current == -* ]]; then
        case $command in
{words}
        esac
    fi
    [[ -n $words ]] && COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _deeprank {" ".join(_programs(options))}
"""


def _described(words: Iterable[tuple[str, str]]) -> str:
    """Return words with descriptions in zsh's format."""
    return " ".join(_quoted(name.replace(":", "\\:") + (f":{meaning}" if meaning else "")) for name, meaning in words)


def _described_commands(options: Options) -> str:
    commands = [(name, command.summary) for name, command in COMMANDS.items() if name in options]
    return _described([*commands, ("sync", "Short for deeprank index sync."), ("completion", ""), ("help", "")])


def _described_options(options: Options) -> str:
    pairs = {key: [(name, each.meaning) for each in listed for name in each.names] for key, listed in options.items()}
    return "\n".join(f"            {_quoted(key)}) described=({_described(words)}) ;;" for key, words in pairs.items())


def _zsh(options: Options) -> str:
    cases, folders = _value_cases(
        options, lambda values: f"compadd -- {' '.join(map(_quoted, values))}; return", "_files; return"
    )
    return f"""\
#compdef {" ".join(_programs(options))}
# Completion of deeprank for zsh, made by: deeprank completion zsh
_deeprank() {{
    local command=${{words[1]:t}} first=2
    local -a described
    if [[ $command == deeprank ]]; then
        if ((CURRENT == 2)); then
            described=({_described_commands(options)})
            _describe -t commands command described
            return
        fi
        command=$words[2] first=3
    fi
    command=${{command#deeprank-}}
    case $command in
        help) compadd -- {" ".join(_first_words(options))}; return ;;
        completion) compadd -- bash zsh fish; return ;;
        sync) command='index sync' ;;
        index)
            if ((CURRENT == first)); then
                compadd -- {" ".join([*_subcommands(options), "--version", "--help"])}
                return
            fi
            command="index $words[first]" ;;
    esac
    if [[ $command == {_quoted(_RATINGS)} ]]; then
        if ((CURRENT == first + 1)); then
            compadd -- {" ".join([*_subcommands(options, _RATINGS), "--help"])}
            return
        fi
        command="{_RATINGS} $words[first + 1]"
    fi
    case "$command $words[CURRENT - 1]" in
        {folders}) _files -/; return ;;
{cases}
    esac
    if [[ $PREFIX == -* ]]; then
        case $command in
{_described_options(options)}
        esac
        _describe -o option described
    else
        _files
    fi
}}
if [[ $funcstack[1] == _deeprank ]]; then
    _deeprank "$@"
else
    compdef _deeprank {" ".join(_programs(options))}
fi
"""


def _fish(options: Options) -> str:
    lines = [_FISH_COMMAND]
    programs = "".join(f" -c {program}" for program in _programs(options))
    umbrella = "complete -c deeprank -f -n 'test (__deeprank_command) = \"\"'"
    lines += [f"{umbrella} -a {name} -d {_quoted(c.summary)}" for name, c in COMMANDS.items() if name in options]
    lines += [f"{umbrella} -a 'sync completion help'"]
    lines += ["complete -c deeprank -f -n 'test (__deeprank_command) = completion' -a 'bash zsh fish'"]
    lines += [
        f"complete{programs} -f -n {_quoted(f'test (__deeprank_command) = {_quoted(group)}')} "
        f"-a {_quoted(' '.join(_subcommands(options, group)))}"
        for group in (_INDEX, _RATINGS)
    ]
    for key, listed in options.items():
        for option in listed:
            lines.append(
                f"complete{programs} -n {_quoted(f'test (__deeprank_command) = {_quoted(key)}')}{_fish_option(option)}"
            )
    return "\n".join(lines) + "\n"


_FISH_COMMAND = """\
# Completion of deeprank for fish, made by: deeprank completion fish
function __deeprank_command
    set -l words (commandline -opc)
    set words[1] (string replace -r '.*/' '' -- $words[1])
    if test $words[1] = deeprank
        set -e words[1]
    else
        set words[1] (string replace deeprank- '' -- $words[1])
    end
    if test (count $words) -eq 0
        echo ''
    else if test $words[1] = sync
        echo 'index sync'
    else if test "$words[1..2]" = "index ratings"; and test (count $words) -gt 2
        echo "index ratings $words[3]"
    else if test $words[1] = index; and test (count $words) -gt 1
        echo "index $words[2]"
    else
        echo $words[1]
    end
end"""


def _fish_option(option: Option) -> str:
    names = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in option.names)
    takes = " -r" if option.takes_value else ""
    if option.values:
        takes = f" -x -a {_quoted(' '.join(option.values))}"
    elif option.folders:
        takes = " -x -a '(__fish_complete_directories)'"
    return f"{names}{takes} -d {_quoted(option.meaning)}"


SHELLS: Mapping[str, Callable[[Options], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
