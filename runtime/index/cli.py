"""``deeprank-index``: make and maintain an index of folders of pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..cli import (
    DeviceOption,
    IndexOption,
    JsonOption,
    MaxPixelsOption,
    ThreadsOption,
    VerboseOption,
    VersionOption,
    application,
    check_page,
    emit_json,
    guarded,
    interruptible,
    kept_index,
    note,
    progress_in_stages,
    termination_as_interrupt,
)
from ..console import (
    DEFAULT_INDEX,
    INDEX_VARIABLE,
    OTHER_NAMES_OF_INDEX,
    default_index,
    emit_paths,
    file_line,
    from_here,
    next_step,
    save_page,
    show_page,
)
from ..devices import return_large_blocks
from ..errors import QueryError
from ..images import DEFAULT_MAX_PIXELS
from ..text import display_path
from . import presentation
from .folder import bytes_in
from .location import is_address
from .patterns import RootFilters
from .ratings.cli import app as ratings_app
from .root_labels import parse_labels
from .search.request import NEAR_DUPLICATE
from .sync import presentation as sync_presentation
from .sync.options import SyncOptions

if TYPE_CHECKING:
    from .sync.dry_run import DryRun
    from .sync.report import SyncReport

SharedOption = Annotated[
    bool,
    typer.Option(
        "--shared",
        help="Let the group of a new index read it; by default, only its owner can. Later commands keep this.",
    ),
]
StoreTokenOption = Annotated[
    Path | None,
    typer.Option(
        "--store-token-file",
        metavar="FILE",
        help="Holds the password of USER in milvus://USER@HOST/NAME, or a token. Default: $DEEPRANK_STORE_TOKEN_FILE.",
    ),
]
LabelOption = Annotated[list[str] | None, typer.Option("--label", help="Only pictures with this label.")]

app = application(
    "Make an index of folders of pictures, and look after it.",
    {
        "sync": [
            "deeprank-index sync photos",
            "deeprank-index sync photos holidays --index my.index --model cats.onnx",
            "deeprank-index sync photos --labels leaf",
            "deeprank-index sync photos --exclude raw --exclude '*.gif' --dry-run",
            "deeprank-index sync --root /media/old/photos=/photos",
            "deeprank-index sync --reembed --model better.onnx",
        ],
        "info": [
            "deeprank-index info",
            "deeprank-index info --index my.index --json",
            "deeprank-index info --index milvus://store:19530/photos",
        ],
        "verify": ["deeprank-index verify", "deeprank-index verify --repair"],
        "remove": [
            "deeprank-index remove 'photos/2019/*' --yes",
            "deeprank-index remove photos/blurred.jpg",
            "deeprank-index remove --label receipts",
            "deeprank-index remove --root /photos/old",
        ],
        "compact": ["deeprank-index compact"],
        "copy": ["deeprank-index copy /backup/deeprank.index", "deeprank-index copy /backup/deeprank.index --replace"],
        "export": ["deeprank-index export vectors.npz", "deeprank-index export cats.parquet --label cats"],
        "import": ["deeprank-index import vectors.npz --index new.index"],
        "load": [
            "deeprank-index load deeprank.index --to milvus://store:19530/photos",
            "deeprank-index load s3://bucket/embedded --to milvus+tls://ann@store/photos",
        ],
        "dedupe": [
            "deeprank-index dedupe",
            "deeprank-index dedupe --open",
            "deeprank-index dedupe --max-distance 0.02 --keep oldest",
            "deeprank-index dedupe --paths-only --print0 | xargs -0 ls -l",
        ],
        "ratings": ["deeprank-index ratings info"],
    },
    {
        **dict.fromkeys(("-r", "-R", "--recursive"), "folders are always read recursively"),
        **dict.fromkeys(
            ("-f", "--force"),
            "see --reembed to embed all pictures again, and --allow-mass-removal to accept lost folders",
        ),
        **dict.fromkeys(("--rebuild", "--reindex"), "--reembed"),
        **dict.fromkeys(("--update", "--incremental"), "a sync embeds only what is new or has changed"),
        **dict.fromkeys(
            ("--delete", "--prune"), "a sync removes pictures whose files are gone, unless --keep-missing is given"
        ),
        **dict.fromkeys(("--batch-size", "--batch"), "the batch size follows from --threads"),
        **OTHER_NAMES_OF_INDEX,
        **dict.fromkeys(("-o", "--out", "--output"), "a file to write needs no option; --index names the index"),
        **dict.fromkeys(("--ignore", "--skip"), "--exclude"),
        **dict.fromkeys(("--only", "--pattern", "--glob", "--filter"), "--include"),
        **dict.fromkeys(("-n", "--dry", "--simulate"), "--dry-run"),
        **dict.fromkeys(("-y", "--assume-yes"), "--yes"),
        **dict.fromkeys(("--fix", "--rescue"), "--repair"),
        **dict.fromkeys(("--overwrite",), "--replace"),
        **dict.fromkeys(("--threshold", "--distance"), "--max-distance"),
        **dict.fromkeys(("--class", "--category", "--tag"), "--label"),
        **dict.fromkeys(("-0", "--null"), "--print0"),
        **dict.fromkeys(("-j", "--jobs", "--workers", "--num-workers", "--num-threads"), "--threads"),
        **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
        "--cpu": "--device cpu",
    },
)


app.add_typer(ratings_app, name="ratings")


@app.callback()
def _common(version: VersionOption = False) -> None:
    pass


@app.command("sync")
@guarded
def sync_command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR...", help="Folders of pictures. Pictures from other folders stay in the index."),
    ] = None,
    index: IndexOption = DEFAULT_INDEX,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="The model of a new index. Default: ./model.onnx, else the bundled one (the word pretrained).",
        ),
    ] = None,
    reembed: Annotated[
        bool,
        typer.Option(
            "--reembed",
            help="Embed all pictures again with --model (default: ./model.onnx), then swap the new index in.",
        ),
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="GLOB",
            help="Only pictures whose path in DIR matches this or another --include: '*.png', 'holidays/**/*.jpg'.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="GLOB", help="Leave out pictures and folders that match: raw, 'tmp/*', '*.gif'."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="top|leaf|path|none|FILE.csv",
            help="Source of the labels: the top folder (below train, val, test if they exist), the innermost folder, "
            "all folders joined by /, none, or a table with the columns path and label. Later syncs keep it. Pictures "
            "in the index are relabelled without embedding them again.",
        ),
    ] = None,
    no_filters: Annotated[
        bool,
        typer.Option(
            "--no-filters", help="Forget the --include and --exclude of earlier syncs, which otherwise apply."
        ),
    ] = False,
    root: Annotated[
        list[str] | None,
        typer.Option("--root", metavar="OLD=NEW", help="The folder OLD of the index has moved to NEW; sync NEW, too."),
    ] = None,
    keep_missing: Annotated[
        bool, typer.Option("--keep-missing", help="Keep pictures in the index whose files are gone.")
    ] = False,
    allow_mass_removal: Annotated[
        bool,
        typer.Option("--allow-mass-removal", help="Accept a folder that is gone, empty or has lost most pictures."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what a sync would do, and write nothing. Moved files are recognised by their content; no file "
            "is decoded.",
        ),
    ] = False,
    shared: SharedOption = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a file was skipped.")] = False,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate",
            help="Decode in separate processes with limits on memory and time: for folders that strangers write to.",
        ),
    ] = False,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_pixels: MaxPixelsOption = DEFAULT_MAX_PIXELS,
    verbose: VerboseOption = False,
) -> None:
    """Update the index from its folders: add, update, move and remove pictures.

    If a sync is interrupted, the next one continues. In a GLOB, * stands for a part of a name and ** for any number of
    folders. A GLOB without / matches names at any depth. Later syncs of a folder keep its filters and its source of
    labels. Folders that file servers and photo programs keep (@eaDir, .thumbnails) are left out unless --include names
    them. Other hidden folders are always left out.
    """
    filters = RootFilters(tuple(include or ()), tuple(exclude or ()))
    options = SyncOptions(
        model=model,
        filters=filters if filters or no_filters else None,
        labels=parse_labels(labels) if labels is not None else None,
        moved_roots=tuple(root or ()),
        keep_missing=keep_missing,
        allow_mass_removal=allow_mass_removal,
        shared=shared,
        device=device,
        threads=threads,
        max_pixels=max_pixels,
        isolate=isolate,
    )
    _check_sync(folders or [], options, reembed=reembed, dry_run=dry_run, no_filters=no_filters)
    if dry_run:
        skipped = _dry_run(index, folders or [], options, as_json=as_json).skipped
    else:
        skipped = _sync(index, folders or [], options, reembed=reembed, as_json=as_json).skipped
    if strict and skipped:
        raise typer.Exit(1)


def _check_sync(
    folders: Sequence[Path], options: SyncOptions, *, reembed: bool, dry_run: bool, no_filters: bool
) -> None:
    """Refuse options that contradict each other."""
    if reembed and folders:
        raise typer.BadParameter("--reembed embeds every folder of the index; name no folder.", param_hint="DIR")
    if reembed and (dry_run or options != options.of_embedder()):
        raise typer.BadParameter(
            "--reembed goes with --model alone; it keeps folders, filters, labels and permissions unchanged."
        )
    if not (reembed or folders or options.moved_roots):
        raise typer.BadParameter("name at least one folder of pictures.", param_hint="DIR")
    if no_filters and options.filters:
        raise typer.BadParameter("--no-filters excludes --include and --exclude; these replace the earlier filters.")


def _dry_run(index: Path, folders: Sequence[Path], options: SyncOptions, *, as_json: bool) -> DryRun:
    from .sync.dry_run import dry_run

    with progress_in_stages() as start:
        report = dry_run(index, folders, options, progress=start, say=note)
    for remark in sync_presentation.sync_remarks(report):
        note(remark)
    if as_json:
        emit_json(sync_presentation.dry_run_document(index, report))
    else:
        for line in sync_presentation.dry_run_lines(index, report):
            print(line)
    return report


def _sync(index: Path, folders: Sequence[Path], options: SyncOptions, *, reembed: bool, as_json: bool) -> SyncReport:
    return_large_blocks()
    continues = "finished embeddings are kept, and the next sync continues there"
    kept = kept_index(index, "the index has the new model") if reembed else continues
    with interruptible(kept) as start, termination_as_interrupt():
        if reembed:
            from .maintenance.reembed import reembed as embed_again

            report = embed_again(index, options, progress=start)
        else:
            from .sync.sync import sync_folders

            report = sync_folders(index, folders, options, progress=start, say=note)
    for remark in sync_presentation.sync_remarks(report):
        note(remark)
    if as_json:
        emit_json(sync_presentation.sync_document(index, report))
    else:
        print(sync_presentation.sync_line(file_line(index), report))
        note(sync_presentation.sync_time(report, bytes_in(index)))
        if report.example is not None:
            next_step("deeprank-query", from_here(report.example), *_index_option(index))
    return report


def _index_option(index: Path) -> list[str]:
    # An index named by the environment is also the default of the next command.
    return [] if index == Path(default_index()) else ["--index", str(index)]


@app.command("info")
@guarded
def info_command(
    index: Annotated[
        str,
        typer.Option(
            "--index",
            envvar=INDEX_VARIABLE,
            metavar="DIR|ADDRESS",
            help="The index folder, or milvus://HOST:PORT/NAME.",
        ),
    ] = str(DEFAULT_INDEX),
    token_file: StoreTokenOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what the index holds."""
    document: dict[str, Any]
    if is_address(index):
        from .milvus.info import store_info

        store = store_info(index, token_file)
        document, lines = presentation.store_info_document(store), presentation.store_info_lines(store)
    else:
        from .info import index_info

        info = index_info(index)
        document, lines = presentation.info_document(info), presentation.info_lines(info)
    if as_json:
        emit_json(document)
    else:
        print(*lines, sep="\n")


@app.command("verify")
@guarded
def verify_command(
    index: IndexOption = DEFAULT_INDEX,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop damaged items; the next sync embeds their pictures again.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check every part of the index; exit with 1 if something is damaged."""
    from .maintenance.verify import verify

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
        typer.Argument(
            metavar="[PATH|GLOB]...",
            help="Files, folders, or quoted patterns as for --path of deeprank-query: 'photos/2019/*'.",
        ),
    ] = None,
    index: IndexOption = DEFAULT_INDEX,
    label: Annotated[list[str] | None, typer.Option("--label", help="Every picture with this label.")] = None,
    root: Annotated[
        list[Path] | None, typer.Option("--root", metavar="DIR", help="A synced folder and everything in it.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Remove pictures from the index; their files stay, and a sync of the folder adds them again.

    A path begins at the current folder or at a synced folder. A pattern matches the same pictures as deeprank-query
    --path: * stands for a part of a name, ** for any number of folders. The files of uploads are deleted, too.
    """
    from .maintenance.remove import plan_removal, remove

    removal = plan_removal(index, patterns or [], labels=label or [], roots=root or [])
    print(*presentation.removal_lines(removal), sep="\n")
    if not yes:
        if not sys.stdin.isatty():
            raise QueryError("Nothing was removed: there is no terminal to ask on; expected --yes.")
        typer.confirm(presentation.removal_question(index, removal), abort=True, err=True)
    with progress_in_stages() as start:
        removed = remove(index, removal, progress=start)
    note(f"removed {presentation.pictures(removed)}")


@app.command("compact")
@guarded
def compact_command(
    index: IndexOption = DEFAULT_INDEX, as_json: JsonOption = False, verbose: VerboseOption = False
) -> None:
    """Shrink the index to its content, for example after many removals.

    After an interruption, the index is either unchanged or compact.
    """
    from .maintenance.compact import compact

    with interruptible("the index answers as before") as start:
        report = compact(index, progress=start)
    for remark in report.remarks:
        note(remark)
    if as_json:
        emit_json(presentation.compact_document(index, report))
    else:
        print(*presentation.compact_lines(index, report), sep="\n")


@app.command("copy")
@guarded
def copy_command(
    target: Annotated[Path, typer.Argument(metavar="DEST", help="A new name or an empty folder.")],
    index: IndexOption = DEFAULT_INDEX,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an existing index at DEST with the copy, in one step.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check every part of the copy before it is kept.")
    ] = True,
    shared: SharedOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Copy one state of the index, even during searches and syncs. The copy is complete, or there is none."""
    from .maintenance.copy import copy

    where = f"at {display_path(target)}"
    with interruptible(kept_index(target, f"the copy is {where}", f"nothing was put {where}")) as start:
        report = copy(index, target, replace=replace, check=check, shared=shared, progress=start)
    for remark in report.remarks:
        note(remark)
    if as_json:
        emit_json(presentation.copy_document(index, target, report))
    else:
        print(presentation.copy_line(target, report))


@app.command("export")
@guarded
def export_command(
    target: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file to write, .npz or .parquet; an earlier one is replaced.")
    ],
    index: IndexOption = DEFAULT_INDEX,
    label: LabelOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write vectors, paths, labels and all other data as numpy arrays or as a Parquet table; import reads both."""
    from .exchange.export import export_index

    with interruptible(f"{display_path(target)} is unchanged") as start:
        report = export_index(index, target, labels=label or [], progress=start)
    if as_json:
        emit_json(presentation.export_document(index, target, report))
    else:
        print(presentation.export_line(target, report))


@app.command("import")
@guarded
def import_command(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Written by export, .npz or .parquet.")],
    index: IndexOption = DEFAULT_INDEX,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="The model of the vectors. Default: ./model.onnx or a bundled one, if its sha256 fits."
        ),
    ] = None,
    shared: SharedOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a new index from an exported file, without embedding anything."""
    from .exchange.importer import import_index

    with interruptible(kept_index(index, "the index was made", "no index was made")) as start:
        report = import_index(source, index, model=model, shared=shared, progress=start)
    for remark in report.remarks:
        note(remark)
    if as_json:
        emit_json(presentation.import_document(index, report))
    else:
        print(presentation.import_line(index, report))


@app.command("load")
@guarded
def load_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FROM", help="An index, or an embedded folder: its path, or its URI such as s3://bucket/folder."
        ),
    ],
    target: Annotated[
        str, typer.Option("--to", metavar="milvus://HOST:PORT/NAME", help="The collection; milvus+tls:// encrypts.")
    ],
    index_type: Annotated[
        str | None,
        typer.Option(
            "--index-type",
            metavar="HNSW|IVF_SQ8|DISKANN",
            help="Vectors in memory, in a quarter of that memory, or on SSD. Default: as before, or HNSW.",
        ),
    ] = None,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Keep the collection that a new model or kind of index replaces.")
    ] = False,
    token_file: StoreTokenOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Load an index or an embedded folder into Milvus, and keep it up to date there.

    If a load is interrupted, the next one continues. It adds what is new, then deletes what is gone, and checks all. A
    new model or kind of index fills a second collection; queries change over when it is complete.
    """
    from .milvus.index_type import INDEX_TYPES
    from .milvus.loader import load

    if index_type is not None and index_type not in INDEX_TYPES:
        raise typer.BadParameter(
            f"{index_type!r} is given; expected HNSW, IVF_SQ8 or DISKANN.", param_hint="--index-type"
        )
    with interruptible("rows that are loaded stay, and the next load continues") as start, termination_as_interrupt():
        report = load(
            source,
            target,
            index_type=index_type,
            keep_old=keep_old,
            token_file=token_file,
            progress=start,
        )
    for remark in presentation.load_remarks(report):
        note(remark)
    if as_json:
        emit_json(presentation.load_document(target, report))
    else:
        print(presentation.load_line(target, report))


@app.command("dedupe")
@guarded
def dedupe_command(
    index: IndexOption = DEFAULT_INDEX,
    max_distance: Annotated[
        float,
        typer.Option(
            "--max-distance", metavar="D", help="Largest squared distance of a near-duplicate from the picture to keep."
        ),
    ] = NEAR_DUPLICATE,
    keep: Annotated[
        str,
        typer.Option(
            "--keep",
            metavar="largest|oldest|first",
            help="The picture to keep of each group: the largest file, the oldest, or the first that was synced.",
        ),
    ] = "largest",
    label: LabelOption = None,
    path: Annotated[
        list[str] | None, typer.Option("--path", metavar="GLOB", help="Only pictures whose path matches.")
    ] = None,
    as_json: JsonOption = False,
    paths_only: Annotated[
        bool, typer.Option("--paths-only", help="Print the paths of each group, without the picture to keep.")
    ] = False,
    print0: Annotated[bool, typer.Option("--print0", help="End each path with a NUL, for xargs -0.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write the groups side by side as a self-contained page."),
    ] = None,
    show: Annotated[
        bool,
        typer.Option(
            "--open",
            help="Show that page in the browser; without --html it is a private file in the temporary folder.",
        ),
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """List groups of near-duplicates: the pictures of a group are near the picture to keep. Nothing is deleted.

    --paths-only leaves out a file if it, or its picture to keep, is gone or has changed since the sync.
    """
    if as_json and paths_only:
        raise typer.BadParameter("--json and --paths-only exclude each other.")
    if print0 and not paths_only:
        raise typer.BadParameter("--print0 goes with --paths-only.")
    if keep not in ("largest", "oldest", "first"):
        raise typer.BadParameter(f"{keep!r} is given; expected largest, oldest or first.", param_hint="--keep")
    check_page(html)
    from .search.duplicate_groups import Keep, find_near_duplicates, removable

    with progress_in_stages() as start:
        report = find_near_duplicates(
            index, max_distance=max_distance, keep=cast(Keep, keep), label=label, path=path, progress=start
        )
    files = removable(report) if paths_only or show or html is not None else None
    page = None
    if files is not None and (show or html is not None):
        from .near_duplicates_page import render

        page = save_page(render(index, report, files), html, "deeprank-dedupe")
    if as_json:
        emit_json(presentation.dedupe_document(index, report))
    elif paths_only and files is not None:
        for remark in presentation.removable_notices(files):
            note(remark)
        emit_paths(files.paths, b"\0" if print0 else b"\n")
    else:
        for line in presentation.dedupe_lines(report):
            print(line)
    if show and page is not None:
        show_page(page)


def main() -> None:
    """Run the command."""
    app()
