"""``deeprank-export``: a training run, or any PyTorch module, to files that need no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..models.allocator import keep_freed_memory
from ..runtime.cli import (
    LabelsOption,
    ThreadsOption,
    VerboseOption,
    VersionOption,
    application,
    guarded,
    note,
    progress_in_stages,
)
from ..runtime.console import emit_json, next_step
from ..runtime.dataset_summary import report_reading
from ..runtime.errors import ExportError, MissingExtraError
from ..runtime.text import display_path
from .asked import Asked

if TYPE_CHECKING:
    from .job import Job
    from .package import Bundle, Package

app = application(
    "Turn a training run, or any PyTorch module, into a self-describing model file, checked on real pictures.",
    [
        "deeprank-export --format onnx",
        "deeprank-export runs/latest --out cats.onnx --data photos/",
        "deeprank-export --precision int8 --out cats.int8.onnx --report int8.md",
        "deeprank-export --format all --out forms/",
        "deeprank-export --module mymodels:build --state weights.pth --data photos/",
    ],
    {
        **dict.fromkeys(("-o", "--output"), "--out"),
        **dict.fromkeys(("--half", "--fp16"), "it is --precision fp16 here"),
        **dict.fromkeys(("--int8", "--quantize", "--quantise"), "it is --precision int8 here"),
        **dict.fromkeys(("--dtype", "--float"), "--precision"),
        **dict.fromkeys(("--input-size", "--img-size", "--imgsz", "--size"), "--image-size"),
        **dict.fromkeys(("--run", "--checkpoint", "--weights"), "a run is named without an option"),
        **dict.fromkeys(("--dataset", "--calibration-data"), "--data"),
        **dict.fromkeys(("--onnx", "--torchscript"), "it is --format here"),
    },
)


@app.command()
@guarded
def export_command(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The run folder of deeprank-train. Default: runs/latest.")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="onnx (recommended), torchscript, pt2 (torch.export), or all: every form and a comparison."
        ),
    ] = "onnx",
    precision: Annotated[
        str,
        typer.Option("--precision", help="fp32; fp16: half the size, for GPUs; int8: a quarter, for CPUs. ONNX alone."),
    ] = "fp32",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The file to write; a folder for all. Default: ./model.onnx, .pt or .pt2; ./exported."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Pictures for parity check and calibration. Default: the run's own data set."),
    ] = None,
    labels: LabelsOption = None,
    parity: Annotated[
        str, typer.Option("--parity", help="sample (500 queries, 5,000 gallery pictures) or full (all pictures).")
    ] = "sample",
    calibration: Annotated[
        int, typer.Option("--calibration-images", min=1, help="Train pictures that int8 is calibrated on.")
    ] = 300,
    max_abs: Annotated[
        float | None, typer.Option("--max-difference", help="Tighter than documented: of a component of a vector.")
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option("--min-cosine", help="Tighter than documented: cosine with PyTorch's vector.")
    ] = None,
    precision_change: Annotated[
        float | None, typer.Option("--max-precision-change", help="Tighter than documented: change of precision@30.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.md", help="Write what the check found as Markdown.")
    ] = None,
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            metavar="PACKAGE.MODULE:FACTORY",
            help="In place of RUN: a function without arguments that returns a torch.nn.Module, which maps normalised "
            "float pictures [n, 3, S, S] to vectors [n, d]. It is run, so name only what you trust.",
        ),
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="With --module: its state_dict, .pth or .safetensors.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, max=2048, help="With --module: S. Default: timm's, else 224.")
    ] = None,
    picture_mode: Annotated[
        str, typer.Option("--picture-mode", help="With --module: stretch, or crop (the centred square).")
    ] = "stretch",
    mean: Annotated[
        str | None,
        typer.Option("--mean", help="With --module: R,G,B for pixels in 0..1. Default: timm's or ImageNet's."),
    ] = None,
    deviation: Annotated[str | None, typer.Option("--std", help="With --module: likewise.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="With --module: what the file calls itself.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity report as JSON.")] = False,
    threads: ThreadsOption = None,
    verbose: VerboseOption = False,
    version: VersionOption = False,
) -> None:
    """Turn a training run, or any PyTorch module, into a self-describing model file."""
    asked = Asked(
        run, form, precision, out, data, parity, calibration, max_abs, min_cosine, precision_change, report, module,
        state, image_size, picture_mode, mean, deviation, name, threads, labels,
    )  # fmt: skip
    asked.check()
    keep_freed_memory()
    try:
        from .job import Job
    except ImportError as error:
        raise MissingExtraError("deeprank-export", "train") from error
    with progress_in_stages() as start:
        job = Job(asked, start)
        report_reading(job.dataset, note)
        if form == "all":
            bundle: Bundle | None = job.all_forms()
        else:
            bundle, package = None, job.one_form()
    if bundle is not None:
        _show_all(bundle, job, as_json)
        packages = bundle.packages
    else:
        _show(package, report, as_json)
        packages = (package,)
    _show_next(packages, job)


def _show_next(packages: Sequence[Package], job: Job) -> None:
    """Print the command that uses the model: the first file that an index accepts."""
    models = [package.model for package in packages if package.model.suffix == ".onnx"]
    if models:
        labels = ("--labels", job.labels) if job.pictures and job.labels not in (None, "top") else ()
        next_step("deeprank-index", "sync", job.pictures or "PHOTOS", *map(str, labels), "--model", models[0])


def _show(package: Package, report: Path | None, as_json: bool) -> None:
    from .tables import package_markdown, parity_rows, remarks

    found = package.report
    if report is not None:
        report.write_text(package_markdown(package), encoding="utf-8")
    if as_json:
        print(package.parity.read_text(encoding="utf-8"), end="")
        return
    note(f"parity on {len(found.queries):,} queries and {len(found.gallery):,} gallery pictures: passed")
    for name, value in parity_rows(package):
        note(f"  {name:<36} {value}")
    for remark in remarks(package):
        note(remark)
    print(f"{display_path(package.model)} ({package.size / 1e6:.1f} MB)")
    for path in (package.parity, package.reference, *([report] if report else [])):
        print(display_path(path))


def _show_all(bundle: Bundle, job: Job, as_json: bool) -> None:
    from .tables import bundle_json, comparison_table, remarks

    if as_json:
        emit_json(bundle_json(bundle))
    else:
        for line in comparison_table(bundle):
            print(line)
        for package in bundle.packages:
            for remark in remarks(package):
                note(remark)
        note(f"everything is in {display_path(job.out)}")
    if bundle.failures:
        raise ExportError(
            "; ".join(f"{form.name} was not written: {why.rstrip('.')}" for form, why in bundle.failures) + "."
        )


def main() -> None:
    """Run the command."""
    app()
