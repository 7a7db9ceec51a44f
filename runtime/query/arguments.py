"""The command line of ``deeprank-query``.

It uses argparse, unlike the other commands: importing Typer takes a third as long as a whole cold
query.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from ..console import (
    DEFAULT_INDEX,
    INDEX_VARIABLE,
    OTHER_NAMES_OF_INDEX,
    as_typed,
    default_index,
    refuse_usage,
    unknown_option,
)
from ..devices import Device
from ..images import DEFAULT_MAX_PIXELS
from ..index.location import Location, StoreOptions, misplaced_option, read_location
from ..index.search.request import MAX_DISTANCE, NEAR_DUPLICATE, SearchRequest

__all__ = ["STDIN", "QueryArguments", "make_parser", "read_arguments"]

STDIN = "-"

_DESCRIPTION = "Show the pictures of an index that are most similar to a picture."
_EXAMPLES = """\
deeprank-query image.jpg --k 10
deeprank-query image.jpg --open
deeprank-query image.jpg --farthest --sheet farthest.png
deeprank-query *.jpg --label cats --label dogs --max-distance 0.5 --json
deeprank-query image.jpg --path 'holidays/*' --unique --copy-to similar
deeprank-query a.jpg b.jpg c.jpg --mean --leave-out-query
deeprank-query --item photos/cats/1.jpg --item 17 -k 30
deeprank-query image.jpg --paths-only --print0 | xargs -0 ls -l
curl -s https://example.com/image.jpg | deeprank-query -
"""
_STATUS = "Exit status: 0 done; 1 failed, or a query could not be read (the others are answered); 2 wrong usage."

# Names of options in other programs, and the option here that does the same.
_OTHER_NAMES = {
    **dict.fromkeys(("-n", "--top", "--topk", "--top-k", "--num", "--number", "--count", "--limit"), "--k"),
    **dict.fromkeys(("--results", "--num-results", "--max-results", "--neighbors", "--neighbours"), "--k"),
    **dict.fromkeys(("--threshold", "--distance", "--max-dist", "--radius"), "--max-distance"),
    **dict.fromkeys(("--class", "--category", "--tag", "--labels"), "--label"),
    **dict.fromkeys(("--filter", "--glob", "--include", "--folder", "--dir"), "--path"),
    **dict.fromkeys(("--reverse", "--worst", "--furthest", "--least-similar", "--dissimilar"), "--farthest"),
    **dict.fromkeys(("--dedupe", "--distinct", "--no-duplicates"), "--unique"),
    **dict.fromkeys(("--exclude-self", "--exclude-query", "--no-self", "--skip-self"), "--leave-out-query"),
    **OTHER_NAMES_OF_INDEX,
    **dict.fromkeys(("--id", "--ids"), "--item"),
    **dict.fromkeys(("--average", "--centroid"), "--mean"),
    **dict.fromkeys(("--browser", "--show", "--view"), "--open"),
    **dict.fromkeys(("--method", "--algorithm"), "--search"),
    **dict.fromkeys(("--brute-force", "--bruteforce"), "--exact"),
    **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
    "--cpu": "--device cpu",
    **dict.fromkeys(("--null", "-0", "-print0"), "--print0"),
    **dict.fromkeys(("-j", "--jobs", "--workers", "--num-workers", "--num-threads"), "--threads"),
    **dict.fromkeys(("--format",), "the results are printed as a table, or with --json or --paths-only"),
    **dict.fromkeys(("-o", "--out", "--output", "--save"), "results are written by --sheet, --html and --copy-to"),
    **dict.fromkeys(("--query", "--image", "--file", "-i"), "pictures are named without an option"),
    "--weights": "--model",
    **dict.fromkeys(("--source", "--root", "--images-from"), "--pictures"),
}


@dataclass(frozen=True)
class QueryArguments:
    """The command line; see the help of each option."""

    images: tuple[str, ...]
    items: tuple[str, ...]
    mean: bool
    request: SearchRequest
    index: Location
    store: StoreOptions
    as_json: bool
    paths_only: bool
    end: bytes
    sheet: Path | None
    html: Path | None
    open: bool
    copy_to: Path | None
    query_label: str | None
    device: Device
    threads: int | None
    max_pixels: int
    verbose: bool


def read_arguments(words: Sequence[str]) -> QueryArguments:
    """Read the command line; ``--help`` and ``--version`` exit with 0, wrong usage with 2."""
    parser = make_parser()
    options, others = parser.parse_known_intermixed_args(list(_with_distance(words)))
    if others:
        parser.error(unknown_option(others[0], parser.option_names(), _OTHER_NAMES))
    if options.images.count(STDIN) > 1:
        parser.error("standard input (-) is given more than once")
    if not (options.images or options.items):
        parser.error("the following arguments are required: IMAGE, or --item")
    if options.exact and options.method == "hnsw":
        parser.error("--exact and --search hnsw exclude each other")
    if options.as_json and options.paths_only:
        parser.error("--json and --paths-only exclude each other")
    if options.print0 and not options.paths_only:
        parser.error("--print0 goes with --paths-only")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in vars(options).items()
    }
    if values.pop("exact"):
        values["method"] = "exact"
    request = SearchRequest(**{option.name: values.pop(option.name) for option in fields(SearchRequest)})
    store = StoreOptions(**{option.name: values.pop(option.name) for option in fields(StoreOptions)})
    misplaced = misplaced_option(options.index, store)
    if misplaced is not None:
        parser.error(misplaced)
    return QueryArguments(request=request, store=store, end=b"\0" if values.pop("print0") else b"\n", **values)


class _Parser(argparse.ArgumentParser):
    """Prints help and usage in the layout of the other commands."""

    def option_names(self) -> list[str]:
        """Return the names of all options."""
        return [name for action in self._actions for name in action.option_strings]

    def error(self, message: str) -> NoReturn:
        """Report wrong usage and exit."""
        refuse_usage(message, self.format_usage())

    def format_usage(self) -> str:
        """Return the usage line."""
        return f"{self.prog} [OPTIONS] [IMAGE ...]"

    def format_help(self) -> str:
        """Return the help."""
        from ..helptext import definitions, examples_section, help_width, paragraphs

        width = help_width()
        arguments = [(str(a.metavar), str(a.help)) for a in self._actions if not a.option_strings]
        options = [(_name(a), str(a.help)) for a in self._actions if a.option_strings]
        parts = [
            f"usage: {self.format_usage()}",
            paragraphs(_DESCRIPTION, width),
            f"arguments:\n{definitions(arguments, width)}",
            f"options:\n{definitions(options, width)}",
            examples_section(_EXAMPLES),
            paragraphs(_STATUS, width),
        ]
        return "\n\n".join(parts) + "\n"


def _name(action: argparse.Action) -> str:
    """Return the names of an option and of its value."""
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else action.dest.upper())
    return f"{names} [{value}]" if action.nargs == "?" else f"{names} {value}"


def make_parser() -> _Parser:
    """Return the parser of the command line."""
    parser = _Parser(prog=as_typed("deeprank-query"), allow_abbrev=False)
    add = parser.add_argument
    images_help = "pictures to find similar ones of; - reads one from standard input"
    add("images", nargs="*", metavar="IMAGE", help=images_help)
    item_help = "query by a picture of the index, by id or path, without reading its file; may be given several times"
    add("--item", action="append", dest="items", default=[], metavar="ID|PATH", help=item_help)
    add("--mean", action="store_true", help="one answer for all pictures: the nearest to the mean of their vectors")
    add("-k", "--k", type=_at_least_one, default=10, metavar="K", help="number of hits (default: 10)")
    index_help = f"the index folder, or milvus://HOST:PORT/NAME (default: ${INDEX_VARIABLE}, then {DEFAULT_INDEX})"
    add("--index", type=read_location, default=read_location(default_index()), metavar="DIR|ADDRESS", help=index_help)
    add("--farthest", action="store_true", help="the least similar pictures instead")
    search_help = "auto (default), exact (scan all vectors) or hnsw (use the graph)"
    add("--search", dest="method", choices=("auto", "exact", "hnsw"), default="auto", help=search_help)
    add("--exact", action="store_true", help="short for --search exact")
    add("--label", action="append", help="only pictures with this label; may be given several times")
    path_help = (
        "only pictures whose path matches: relative to the synced folder, or else to the current one; with a leading "
        "/, the whole path"
    )
    add("--path", action="append", metavar="GLOB", help=f"{path_help}; may be given several times")
    add(
        "--max-distance",
        type=_max_distance,
        metavar="D",
        help="only pictures within this squared Euclidean distance (0 to 4)",
    )
    leave_help = "leave out the query's own file and its exact copies; K other pictures remain"
    add("--leave-out-query", action="store_true", help=leave_help)
    unique_help = f"hide near-duplicates: hits within D (default: {NEAR_DUPLICATE}) of a better hit"
    add("--unique", type=_distance, metavar="D", nargs="?", const=NEAR_DUPLICATE, help=unique_help)
    _add_outputs(parser)
    _add_store(parser)
    add("--device", default="auto", help="auto (default), cpu or cuda; auto uses a GPU if one works")
    threads_help = "CPU threads of the network (default: the usable cores, at most 4)"
    add("--threads", type=_at_least_one, metavar="N", help=threads_help)
    pixels_help = f"refuse query pictures with more pixels, before decoding (default: {DEFAULT_MAX_PIXELS})"
    add("--max-pixels", type=_at_least_one, default=DEFAULT_MAX_PIXELS, metavar="N", help=pixels_help)
    add("-v", "--verbose", action="store_true", help="show tracebacks of errors")
    add("--version", action=_ShowVersion, nargs=0, default=argparse.SUPPRESS, help="show the version and exit")
    return parser


def _add_outputs(parser: _Parser) -> None:
    """Add the options that choose the output and its files."""
    add = parser.add_argument
    add("--json", action="store_true", dest="as_json", help="print one JSON document")
    add("--paths-only", action="store_true", help="print the paths alone")
    add("--print0", action="store_true", help="end each path with a NUL, for xargs -0")
    add("--sheet", type=Path, metavar="PNG", help="also draw the queries and their hits as a contact sheet")
    add(
        "--html", type=_page_name, metavar="FILE", help="also write the queries and their hits as a self-contained page"
    )
    open_help = "show that page in the browser; without --html it is a private file in the temporary folder"
    add("--open", action="store_true", help=open_help)
    copy_help = "copy the hits' files to a new or empty folder; several queries get one folder each"
    add("--copy-to", type=Path, metavar="DIR", help=copy_help)
    add(
        "--query-label", metavar="LABEL", help="label of the queries; the sheet and the page mark the hits that have it"
    )


def _add_store(parser: _Parser) -> None:
    """Add the options of an index in a store."""
    add = parser.add_argument
    model_help = "with a store: the model of its vectors (default: ./model.onnx, else the bundled one)"
    add("--model", type=Path, metavar="FILE", help=model_help)
    pictures_help = "with a store: where the pictures' files are now (default: where they were loaded from)"
    add("--pictures", metavar="DIR|URI", help=pictures_help)
    add(
        "--store-token-file",
        dest="token_file",
        type=Path,
        metavar="FILE",
        help="holds the password of USER in milvus://USER@HOST/NAME, or a token (default: $DEEPRANK_STORE_TOKEN_FILE)",
    )


class _ShowVersion(argparse.Action):
    """Looks up the version only if it is requested."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .. import __version__

        sys.stdout.write(f"deeprank {__version__}\n")  # argparse's own exit message goes to stderr
        parser.exit()


def _with_distance(words: Sequence[str]) -> Iterator[str]:
    """Join ``--unique`` with the distance after it, or with the default if an IMAGE follows."""
    remaining = iter(words)
    for word in remaining:
        if word == "--":
            yield from (word, *remaining)
        elif word == "--unique":
            following = next(remaining, None)
            given = following is not None and _is_number(following)
            yield f"--unique={following if given else NEAR_DUPLICATE}"
            if following is not None and not given:
                yield from _with_distance([following, *remaining])
        else:
            yield word


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _distance(text: str) -> float:
    if not _is_number(text) or not 0 <= float(text) <= MAX_DISTANCE:
        raise argparse.ArgumentTypeError(f"{text!r} is given; expected a squared distance, 0 to 4")
    return float(text)


def _max_distance(text: str) -> float:
    if not _is_number(text) or not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is given; expected a squared distance, such as 0.5")
    return float(text)


def _page_name(text: str) -> Path:
    # Browsers recognise a page by its extension; and a query picture after --html is not overwritten.
    if Path(text).suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"{text!r} is given; expected a name that ends in .html")
    return Path(text)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is given; expected a whole number, at least 1")
    return int(text)
