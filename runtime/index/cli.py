"""``deeprank-index``: make an index of folders of pictures, and look after it."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
from ..text import display_path, printable

if TYPE_CHECKING:
    from .info import IndexInfo
    from .remove import Removal
    from .sync import SyncReport
    from .verify import VerifyReport

SCHEMA = 1
# Skipped files and removed pictures that are named one by one.
_MOST_LINES = 20

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
    try:
        with progress_in_stages() as start:
            report = work(index, model=model, progress=start, **options)
    except KeyboardInterrupt:
        kept = "the index is as it was" if reembed else "what was embedded is kept, and the next sync continues there"
        fail(f"interrupted; {kept}.", status=130)
    _show_sync(index, report, as_json)
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
        emit_json({"schema": SCHEMA, **_info_document(info)})
    else:
        _show_info(info)


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
        emit_json(_verify_document(index, report))
    else:
        _show_verify(index, report)
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
    _show_removal(removal)
    if not yes:
        if not sys.stdin.isatty():
            raise QueryError("Nothing was removed: there is no terminal to ask on; expected --yes.")
        typer.confirm(f"Take {_pictures(len(removal.ids))} out of {display_path(index)}?", abort=True, err=True)
    with progress_in_stages() as start:
        count = remove(index, removal, progress=start)
    note(f"removed {_pictures(count)}")


def main() -> None:
    """Run the command."""
    app()


def _pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"


def _show_sync(index: Path, report: SyncReport, as_json: bool) -> None:
    for path, reason in report.skipped[:_MOST_LINES]:
        note(f"skipped {display_path(path)}: {reason}")
    if len(report.skipped) > _MOST_LINES:
        note(f"skipped {len(report.skipped) - _MOST_LINES:,} others (--json lists them all)")
    if report.unknown_extensions:
        kinds = ", ".join(f"{count:,} {printable(kind) or 'without one'}" for kind, count in _most_common(report))
        note(f"left alone, by extension: {kinds}")
    for remark in report.remarks:
        note(remark)
    if as_json:
        emit_json(_sync_document(index, report))
        return
    print(
        f"{report.added:,} added, {report.updated:,} updated, {report.moved:,} moved, {report.removed:,} removed, "
        f"{report.unchanged:,} unchanged, {len(report.skipped):,} skipped: "
        f"{display_path(index)} holds {_pictures(report.items)}"
    )


def _most_common(report: SyncReport) -> list[tuple[str, int]]:
    return sorted(report.unknown_extensions.items(), key=lambda entry: (-entry[1], entry[0]))[:_MOST_LINES]


def _sync_document(index: Path, report: SyncReport) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "items": report.items,
        "added": report.added,
        "updated": report.updated,
        "moved": report.moved,
        "removed": report.removed,
        "unchanged": report.unchanged,
        "skipped": [{"path": path, "reason": reason} for path, reason in report.skipped],
        "unknown_extensions": dict(report.unknown_extensions),
        "remarks": list(report.remarks),
    }


def _info_document(info: IndexInfo) -> dict[str, Any]:
    model = info.model
    return {
        "index": info.path,
        "items": info.items,
        "roots": [{"path": path, "items": count} for path, count in info.roots.items()],
        "labels": dict(info.labels),
        "unlabelled": info.unlabelled,
        "dim": info.dim,
        "model": {
            "sha256": info.model_sha256,
            "name": model.name if model else None,
            "backbone": model.backbone if model else None,
            "precision": model.precision if model else None,
            "picture": {"size": model.picture.size, "mode": model.picture.mode} if model else None,
            "problem": info.model_problem,
        },
        "graph": dict(info.graph) if info.graph is not None else None,
        "graph_problem": info.graph_problem,
        "bytes": dict(info.sizes),
        "database_schema": info.schema,
    }


def _show_info(info: IndexInfo) -> None:
    print(f"index      {display_path(info.path)}, {sum(info.sizes.values()) / 1e6:.1f} MB")
    print(f"pictures   {info.items:,}")
    for path, count in info.roots.items():
        print(f"folder     {display_path(path)}: {count:,}")
    shown = list(info.labels.items())[:_MOST_LINES]
    more = f" and {len(info.labels) - len(shown):,} others" if len(info.labels) > len(shown) else ""
    print(f"labels     {', '.join(f'{printable(label)} ({count:,})' for label, count in shown) or 'none'}{more}")
    if info.model is not None:
        rule = info.model.picture
        print(
            f"model      {printable(info.model.name)} ({printable(info.model.backbone)}, {info.model.precision}), "
            f"{info.dim} numbers from {rule.size} x {rule.size} pixels ({rule.mode}), sha256 {info.model_sha256[:12]}"
        )
    else:
        print(f"model      cannot be used: {info.model_problem}")
    if info.graph is not None:
        print(f"graph      {info.graph['items']:,} vectors, {info.graph['removed']:,} removed ones")
    else:
        print(f"graph      {info.graph_problem}; searches scan, which gives the exact result")


def _verify_document(index: Path, report: VerifyReport) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "items": report.items,
        "damaged": list(report.damaged),
        "problems": list(report.problems),
        "repaired": list(report.repaired),
        "remaining": list(report.remaining),
    }


def _show_verify(index: Path, report: VerifyReport) -> None:
    for problem in report.problems:
        print(f"damaged: {printable(problem)}")
    for done in report.repaired:
        print(f"repaired: {printable(done)}")
    for problem in report.remaining if report.repaired else ():
        print(f"still damaged: {printable(problem)}")
    if not report.problems:
        print(f"{display_path(index)} is sound: {_pictures(report.items)}")


def _show_removal(removal: Removal) -> None:
    for path in removal.paths[:_MOST_LINES]:
        print(display_path(path))
    if len(removal.paths) > _MOST_LINES:
        print(f"... and {len(removal.paths) - _MOST_LINES:,} others")
