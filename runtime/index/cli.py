"""``deeprank-index``: make an index of folders of pictures, and look after it."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ..cli import (
    DeviceOption,
    MaxPixelsOption,
    ThreadsOption,
    VerboseOption,
    VersionOption,
    application,
    emit_json,
    fail,
    guarded,
    note,
    progress_in_stages,
)
from ..devices import Device
from ..errors import QueryError
from ..images import DEFAULT_MAX_PIXELS
from ..memory import return_large_blocks
from ..text import display_path
from . import presentation

IndexOption = Annotated[
    Path,
    typer.Option("--index", envvar="DEEPRANK_INDEX", metavar="DIR", help="The index folder.", show_default=True),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DEFAULT_INDEX = Path("deeprank.index")

app = application(
    "Make an index of folders of pictures, and look after it.",
    [
        "deeprank-index sync photos",
        "deeprank-index sync photos holidays --index my.index --model cats.onnx",
        "deeprank-index info",
        "deeprank-index verify --repair",
        "deeprank-index remove 'photos/2019/*' --yes",
    ],
)


@app.callback()
def _common(version: VersionOption = False) -> None:
    pass


@app.command("sync")
@guarded
def sync_command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR...", help="Folders of pictures; what other folders brought is left alone."),
    ] = None,
    index: IndexOption = DEFAULT_INDEX,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="For a new index. Default: ./model.onnx, else the one that ships (the word pretrained).",
        ),
    ] = None,
    reembed: Annotated[
        bool,
        typer.Option(
            "--reembed",
            help="Embed everything anew with --model (default: ./model.onnx), then swap the new index in.",
        ),
    ] = False,
    allow_mass_removal: Annotated[
        bool,
        typer.Option("--allow-mass-removal", help="Accept a folder that is gone, empty or has lost most pictures."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a file was skipped.")] = False,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_pixels: MaxPixelsOption = DEFAULT_MAX_PIXELS,
    verbose: VerboseOption = False,
) -> None:
    """Make the index hold what the folders hold: add, update, move and remove pictures.

    Interrupted at any moment, the next sync continues.
    """
    if reembed and folders:
        raise typer.BadParameter("--reembed embeds every folder of the index; name none.", param_hint="DIR")
    if not reembed and not folders:
        raise typer.BadParameter("name at least one folder of pictures.", param_hint="DIR")
    options: dict[str, Any] = {"device": cast(Device, device), "threads": threads, "max_pixels": max_pixels}
    if reembed:
        from .reembed import reembed as work
    else:
        from .sync import sync

        work = functools.partial(sync, roots=folders or [], allow_mass_removal=allow_mass_removal, say=note)
    return_large_blocks()
    try:
        with progress_in_stages() as start:
            report = work(index, model=model, progress=start, **options)
    except KeyboardInterrupt:
        kept = "the index is as it was" if reembed else "what was embedded is kept, and the next sync continues there"
        fail(f"interrupted; {kept}.", status=130)
    for remark in presentation.sync_remarks(report):
        note(remark)
    if as_json:
        emit_json(presentation.sync_document(index, report))
    else:
        print(presentation.sync_line(index, report))
    if strict and report.skipped:
        raise typer.Exit(1)


@app.command("info")
@guarded
def info_command(
    index: IndexOption = DEFAULT_INDEX, as_json: JsonOption = False, verbose: VerboseOption = False
) -> None:
    """Say what the index holds."""
    from .info import index_info

    info = index_info(index)
    if as_json:
        emit_json(presentation.info_document(info))
    else:
        print(*presentation.info_lines(info), sep="\n")


@app.command("verify")
@guarded
def verify_command(
    index: IndexOption = DEFAULT_INDEX,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop what is damaged; the next sync embeds those pictures again.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check every part of the index; exit with 1 if something is damaged."""
    from .verify import verify

    with progress_in_stages() as start:
        report = verify(index, repair=repair, progress=start)
    if as_json:
        emit_json(presentation.verify_document(index, report))
    else:
        print(*presentation.verify_lines(index, report), sep="\n")
    if report.remaining:
        raise typer.Exit(1)


@app.command("remove")
@guarded
def remove_command(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH|GLOB]...", help="Files, folders, or patterns in quotes: 'photos/2019/*'."),
    ] = None,
    index: IndexOption = DEFAULT_INDEX,
    label: Annotated[list[str] | None, typer.Option("--label", help="Every picture with this label.")] = None,
    root: Annotated[
        list[Path] | None, typer.Option("--root", metavar="DIR", help="A synced folder and everything in it.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Take pictures out of the index; the files themselves stay, and a sync of their folder brings them back."""
    from .remove import plan_removal, remove

    removal = plan_removal(index, patterns or [], labels=label or [], roots=root or [])
    print(*presentation.removal_lines(removal), sep="\n")
    if not yes:
        if not sys.stdin.isatty():
            raise QueryError("Nothing was removed: there is no terminal to ask on; expected --yes.")
        typer.confirm(
            f"Take {presentation.pictures(len(removal.ids))} out of {display_path(index)}?", abort=True, err=True
        )
    with progress_in_stages() as start:
        removed = remove(index, removal, progress=start)
    note(f"removed {presentation.pictures(removed)}")


def main() -> None:
    """Run the command."""
    app()
