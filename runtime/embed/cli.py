"""``deeprank-embed``: embed pictures into a folder of parts, here or on many machines."""

from __future__ import annotations

from typing import Annotated

import typer

from ..cli import (
    DeviceOption,
    JsonOption,
    MaxPixelsOption,
    ThreadsOption,
    VerboseOption,
    VersionOption,
    application,
    emit_json,
    guarded,
    interruptible,
    note,
    termination_as_interrupt,
)
from ..devices import return_large_blocks
from ..images import DEFAULT_MAX_PIXELS
from ..parts.settings import MAX_ROWS_PER_PART
from .options import DEFAULT_PART_SIZE, ENGINES, EmbedOptions, Engine, Share

app = application(
    "Embed pictures into a folder of Parquet parts, here or on many machines.",
    [
        "deeprank-embed photos --out photos.parts",
        "deeprank-embed s3://bucket/photos --out s3://bucket/photos.parts",
        "deeprank-embed listing.parquet --root s3://bucket --out parts",
        "deeprank-embed photos --out parts --engine ray --address auto",
        "deeprank-embed photos --out parts --parts 3/16",
        "deeprank-embed photos --out parts --retry-skipped",
    ],
    {
        **dict.fromkeys(("-o", "--output", "--output-folder"), "--out"),
        **dict.fromkeys(("--shard", "--shards", "--array"), "--parts"),
        **dict.fromkeys(("--rows", "--rows-per-part", "--shard-size", "--chunk-size"), "--part-size"),
        **dict.fromkeys(("-j", "--jobs", "--num-workers", "--actors"), "--workers"),
        **dict.fromkeys(("--cluster", "--ray-address", "--master"), "--address"),
        **dict.fromkeys(("--resume", "--continue"), "the same command continues where it was interrupted"),
        **dict.fromkeys(("--retry", "--retry-failed"), "--retry-skipped"),
        **dict.fromkeys(("--batch-size", "--batch"), "the batch size follows from --threads"),
        **dict.fromkeys(("--ignore", "--skip"), "--exclude"),
        **dict.fromkeys(("--only", "--pattern", "--glob", "--filter"), "--include"),
        **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
        "--cpu": "--device cpu",
    },
)


def _engine(text: str) -> Engine:
    if text not in ENGINES:
        raise typer.BadParameter(f"{text!r} is unknown; expected {' or '.join(ENGINES)}.")
    return text


@app.command(no_args_is_help=True)
@guarded
def embed_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of pictures, a Parquet listing (path[, label, size, mtime_ns]), or an s3:// or gs:// URI of "
            "either.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The folder of parts, a path or a URI.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="FILE",
            help="The model of a new folder. Default: ./model.onnx, else the bundled one (the word pretrained).",
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            "--root", metavar="DIR", help="Where the paths of a listing begin. Default: the folder of the listing."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="top|leaf|path|none|FILE.csv",
            help="Source of the labels of a new folder: the top folder (below train, val, test if they exist), the "
            "innermost folder, all folders joined by /, none, or a table with the columns path and label. Default: the "
            "listing's, else top.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Only pictures whose path matches this or another --include."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="Leave out pictures and folders that match."),
    ] = None,
    part_size: Annotated[
        int | None,
        typer.Option(
            "--part-size",
            min=1,
            max=MAX_ROWS_PER_PART,
            metavar="N",
            help=f"Pictures in a part of a new folder. Default: {DEFAULT_PART_SIZE}.",
        ),
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(
            "--engine", parser=_engine, metavar="here|ray", help="Embed in this process, or on a Ray cluster."
        ),
    ] = "here",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="The head of the Ray cluster. Default: auto, the one on this machine.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, metavar="N", help="Processes on the Ray cluster. Default: as its cores allow."
        ),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts", metavar="I/N", help="Only this share of the parts, the I-th of N, beside other processes."
        ),
    ] = None,
    retry_skipped: Annotated[
        bool, typer.Option("--retry-skipped", help="Try the pictures again that could not be read.")
    ] = False,
    allow_mass_removal: Annotated[
        bool,
        typer.Option(
            "--allow-mass-removal", help="Accept a source that is gone, empty or has lost most of its pictures."
        ),
    ] = False,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_pixels: MaxPixelsOption = DEFAULT_MAX_PIXELS,
    version: VersionOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Embed pictures into a folder of Parquet parts, here or on many machines.

    The same command again continues after an interruption, and then embeds what has changed in SOURCE. Pictures that
    cannot be read are kept as rows with their reason. A worker on a Ray cluster has one thread, unless --threads says
    otherwise. Keys of object storage come from the environment, such as AWS_ACCESS_KEY_ID.
    """
    if engine != "ray" and (address is not None or workers is not None):
        raise typer.BadParameter("--address and --workers go with --engine ray.")
    options = EmbedOptions(
        model=model,
        labels=labels,
        include=tuple(include) if include else None,
        exclude=tuple(exclude) if exclude else None,
        root=root,
        part_size=part_size,
        engine=engine,
        address=address or "auto",
        workers=workers,
        share=None if parts is None else Share.of(parts),
        retry_skipped=retry_skipped,
        allow_mass_removal=allow_mass_removal,
        device=device,
        threads=threads,
        max_pixels=max_pixels,
    )
    _embed(source, out, options, as_json=as_json)


def _embed(source: str, out: str, options: EmbedOptions, *, as_json: bool) -> None:
    from . import presentation
    from .job import embed

    return_large_blocks()
    kept = "finished parts are kept, and the same command continues there"
    with interruptible(kept) as start, termination_as_interrupt():
        report = embed(source, out, options, progress=start, say=note)
    for remark in presentation.remarks(report):
        note(remark)
    if as_json:
        emit_json(presentation.document(report))
    else:
        print(*presentation.lines(report), sep="\n")


def main() -> None:
    """Run ``deeprank-embed``."""
    app()
