"""``deeprank-export``: a run, a PyTorch module or an ONNX file, to files that need no PyTorch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..models.allocator import keep_freed_memory
from ..runtime.cli import (
    VerboseOption,
    VersionOption,
    application,
    guarded,
    note,
    progress_in_stages,
    with_options,
)
from ..runtime.console import emit_json, file_line, next_step, note_file
from ..runtime.data.summary import report_reading
from ..runtime.errors import ExportError
from ..runtime.text import duration
from .options import ALL, ExportOptions

if TYPE_CHECKING:
    from .job import Job
    from .package import Bundle, Package

app = application(
    "Turn a training run, a PyTorch module or an ONNX file into a self-describing model file, checked on pictures.",
    [
        "deeprank-export --format onnx",
        "deeprank-export runs/latest --out cats.onnx --data photos/",
        "deeprank-export --precision int8 --out cats.int8.onnx --report int8.md",
        "deeprank-export --format all --out forms/",
        "deeprank-export runs/latest --data sample.zip --sample-pictures",
        "deeprank-export --module mymodels:build --state weights.pth --data photos/",
        "deeprank-export --from-onnx clip/onnx/vision_model.onnx --data photos/",
    ],
    {
        "-o": "--out",
        **dict.fromkeys(("--half", "--fp16"), "it is --precision fp16 here"),
        **dict.fromkeys(("--int8", "--quantize", "--quantise"), "it is --precision int8 here"),
        **dict.fromkeys(("--dtype", "--float"), "--precision"),
        **dict.fromkeys(("--input-size", "--img-size", "--imgsz"), "--image-size"),
        **dict.fromkeys(("--run", "--checkpoint", "--weights"), "give the run without an option"),
        **dict.fromkeys(("--dataset", "--calibration-data"), "--data"),
        **dict.fromkeys(("--onnx", "--torchscript"), "it is --format here; --from-onnx takes a file"),
    },
)


@app.command()
@guarded
@with_options
def export_command(
    options: ExportOptions,
    verbose: VerboseOption = False,
    version: VersionOption = False,
) -> None:
    """Turn a training run, a PyTorch module or an ONNX file into a self-describing model file."""
    began = time.monotonic()
    options.check()
    keep_freed_memory()
    from .job import Job

    with progress_in_stages() as start:
        job = Job(options, start)
        for remark in job.remarks:
            note(remark)
        if job.labels != "none":
            report_reading(job.dataset, note)
        bundle = job.all_forms() if options.format == ALL else None
        packages = (job.one_form(),) if bundle is None else bundle.packages
    if bundle is None:
        _show(packages[0], options)
    else:
        _show_all(bundle, job, options)
    if not options.as_json:
        note(f"Took {duration(time.monotonic() - began)}.")
    _show_next(packages, job)


def _show_next(packages: Sequence[Package], job: Job) -> None:
    """Print the command that uses the model: the first file that an index accepts."""
    models = [package.model for package in packages if package.model.suffix == ".onnx"]
    if models:
        labels = ("--labels", job.labels) if job.pictures and job.labels not in (None, "top") else ()
        next_step("deeprank-index", "sync", job.pictures or "PHOTOS", *map(str, labels), "--model", models[0])


def _show(package: Package, options: ExportOptions) -> None:
    from .tables import package_markdown, parity_rows, remarks

    checked = package.report
    if options.report is not None:  # through a link or to /dev/stdout, so not by renaming
        options.report.write_text(package_markdown(package), encoding="utf-8")
    if options.as_json:
        print(package.parity.read_text(encoding="utf-8"), end="")
        return
    note(f"parity on {len(checked.queries):,} queries and {len(checked.gallery):,} gallery pictures: passed")
    for name, value in parity_rows(package):
        note(f"  {name:<36} {value}")
    for remark in remarks(package):
        note(remark)
    print(file_line(package.model, size=package.size))
    beside = package.float_input
    floats = [] if beside is None else [beside.model, beside.preprocessor]
    for path in (package.parity, package.reference, *floats, options.report):
        if path is not None:
            print(file_line(path))


def _show_all(bundle: Bundle, job: Job, options: ExportOptions) -> None:
    from .tables import bundle_json, comparison_table, remarks

    if options.as_json:
        emit_json(bundle_json(bundle))
    else:
        for line in comparison_table(bundle):
            print(line)
        for package in bundle.packages:
            for remark in remarks(package):
                note(remark)
        note_file("All files are in", job.out, ".")
    if bundle.failures:
        raise ExportError(
            "; ".join(f"{form.name} was not written: {why.rstrip('.')}" for form, why in bundle.failures) + "."
        )


def main() -> None:
    """Run the command."""
    app()
