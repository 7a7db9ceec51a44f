"""``deeprank-export``: a training run to one model file that a box without PyTorch can use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..models.allocator import keep_freed_memory
from ..runtime.cli import ThreadsOption, VerboseOption, VersionOption, application, guarded, note, progress_in_stages
from ..runtime.errors import ExportError, MissingExtraError
from ..runtime.text import display_path

if TYPE_CHECKING:
    from .package import Format, Package

FORMATS = {"onnx": "model.onnx", "torchscript": "model.pt"}

app = application(
    "Turn a training run into one self-describing model file, checked against the PyTorch network on real pictures.",
    [
        "deeprank-export --format onnx",
        "deeprank-export runs/latest --out cats.onnx --data photos/",
        "deeprank-export --format torchscript --out cats.pt",
    ],
)


@app.command()
@guarded
def export_command(
    run: Annotated[Path, typer.Argument(metavar="[RUN]", help="The run folder of deeprank-train.")] = Path(
        "runs/latest"
    ),
    form: Annotated[str, typer.Option("--format", help="onnx (recommended) or torchscript.")] = "onnx",
    precision: Annotated[str, typer.Option("--precision", help="fp32.")] = "fp32",
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write. Default: ./model.onnx or ./model.pt.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Pictures for the parity check. Default: the run's own data set.")
    ] = None,
    parity: Annotated[
        str, typer.Option("--parity", help="sample (500 queries, 5,000 gallery pictures) or full (all pictures).")
    ] = "sample",
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity report as JSON.")] = False,
    threads: ThreadsOption = None,
    verbose: VerboseOption = False,
    version: VersionOption = False,
) -> None:
    """Turn a training run into one self-describing model file, checked against the PyTorch network."""
    _require("--format", form, tuple(FORMATS))
    _require("--precision", precision, ("fp32",))
    _require("--parity", parity, ("sample", "full"))
    keep_freed_memory()
    try:
        from ..train.reference import Reference
        from .package import export_package
    except ImportError as error:
        raise MissingExtraError("deeprank-export", "train") from error
    from ..runtime.datasets import open_dataset

    reference = Reference(run)
    with progress_in_stages() as start:
        package = export_package(
            reference.network,
            reference.info,
            reference,
            open_dataset(data or reference.data),
            out or Path(FORMATS[form]),
            form=cast("Format", form),
            full=parity == "full",
            threads=threads,
            progress=start,
        )
    if as_json:
        print(package.parity.read_text(encoding="utf-8"), end="")
    else:
        _show(package)


def _require(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ExportError(f"{option} {value!r}; expected {' or '.join(allowed)}.")


def _show(package: Package) -> None:
    report, evaluation = package.report, package.report.evaluation
    k = report.k
    note(f"parity on {len(report.queries):,} queries and {len(report.gallery):,} gallery pictures: passed")
    rows = [
        ("largest difference of a component", f"{report.difference.max_abs_difference:.1e}"),
        ("smallest and mean cosine", f"{report.difference.min_cosine:.7f}, {report.difference.mean_cosine:.7f}"),
        ("batch 1 against batch n", f"{report.batch_difference.max_abs_difference:.1e}"),
        (f"overlap of the {k} nearest", f"{report.neighbour_overlap:.4f}"),
        (f"precision@{k}, PyTorch, exact", f"{evaluation.reference:.4f}"),
        (f"precision@{k}, exported, exact", f"{evaluation.runtime_exact:.4f}"),
        (f"precision@{k}, exported, HNSW", f"{evaluation.runtime_hnsw:.4f}"),
    ]
    for name, value in rows:
        note(f"  {name:<36} {value}")
    print(f"{display_path(package.model)} ({package.size / 1e6:.1f} MB)")
    for path in (package.parity, package.reference):
        print(display_path(path))


def main() -> None:
    """Run the command."""
    app()
