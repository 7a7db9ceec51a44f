"""The options of ``deeprank-export``, checked before PyTorch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..runtime.cli import LabelsOption, ThreadsOption
from ..runtime.errors import ExportError
from ..runtime.text import display_path, printable
from .formats.formats import form_of

__all__ = ["ALL", "ExportOptions", "three_numbers"]

ALL = "all"


@dataclass(frozen=True)
class ExportOptions:
    """The options, as their help describes them."""

    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The run folder of deeprank-train. Default: runs/latest.")
    ] = None
    format: Annotated[
        str,
        typer.Option(
            "--format", help="onnx (recommended), torchscript, pt2 (torch.export), or all: every form and a comparison."
        ),
    ] = "onnx"
    precision: Annotated[
        str,
        typer.Option("--precision", help="fp32; fp16: half the size, for GPUs; int8: a quarter, for CPUs. ONNX only."),
    ] = "fp32"
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File to write; a folder for --format all. Default: ./model.onnx, .pt or .pt2; ./exported."
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option("--data", help="Pictures for the parity check and calibration. Default: the run's own data set."),
    ] = None
    labels: LabelsOption = None
    parity: Annotated[
        str, typer.Option("--parity", help="sample (500 queries, 5,000 gallery pictures) or full (all pictures).")
    ] = "sample"
    sample_pictures: Annotated[
        bool,
        typer.Option(
            "--sample-pictures",
            help="Store the pictures of the parity check in *.reference.npz, so that a box without them proves parity.",
        ),
    ] = False
    calibration_pictures: Annotated[
        int, typer.Option("--calibration-images", min=1, help="Number of train pictures to calibrate int8 on.")
    ] = 300
    max_difference: Annotated[
        float | None,
        typer.Option("--max-difference", help="Largest difference of a component; tighter than documented."),
    ] = None
    min_cosine: Annotated[
        float | None,
        typer.Option("--min-cosine", help="Smallest cosine with PyTorch's vector; tighter than documented."),
    ] = None
    precision_change: Annotated[
        float | None,
        typer.Option("--max-precision-change", help="Largest change of precision@30; tighter than documented."),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.md", help="Write the result of the parity check as Markdown."),
    ] = None
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            metavar="PACKAGE.MODULE:FACTORY",
            help="Instead of RUN: a function without arguments that returns a torch.nn.Module, which maps normalised "
            "float pictures [n, 3, S, S] to vectors [n, d]. Its code is run, so name only code that you trust.",
        ),
    ] = None
    state: Annotated[
        Path | None, typer.Option("--state", help="With --module: its state_dict, .pth or .safetensors.")
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", min=1, max=2048, help="With --module: side S of its input. Default: timm's, else 224."
        ),
    ] = None
    picture_mode: Annotated[
        str, typer.Option("--picture-mode", help="With --module: stretch, or crop (the centred square).")
    ] = "stretch"
    mean: Annotated[
        str | None,
        typer.Option("--mean", help="With --module: mean as R,G,B, for pixels in 0..1. Default: timm's or ImageNet's."),
    ] = None
    deviation: Annotated[
        str | None, typer.Option("--std", help="With --module: standard deviation; otherwise like --mean.")
    ] = None
    name: Annotated[str | None, typer.Option("--name", help="With --module: name of the model in the file.")] = None
    license: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="License of the model in the file: an SPDX identifier such as CC-BY-4.0, or a short text. Default: "
            "the --license of the run.",
        ),
    ] = None
    unrelated_distance: Annotated[
        float | None,
        typer.Option(
            "--unrelated-distance",
            metavar="D",
            help="Squared distance for the file: pictures farther apart are not similar any more, and answers show it. "
            "Measure it on your own pictures.",
        ),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity report as JSON.")] = False
    threads: ThreadsOption = None

    def check(self) -> None:
        """Refuse impossible or contradictory options.

        Raises:
            ExportError: names the option and the possible values.

        """
        if self.format != ALL:
            form_of(self.format, self.precision)
        elif self.precision != "fp32":
            raise ExportError(f"--format all writes every precision; leave --precision {self.precision} out.")
        if self.report is not None and not self.report.absolute().parent.is_dir():
            raise ExportError(f"--report {display_path(self.report)}: its folder does not exist; make it first.")
        _require("--parity", self.parity, ("sample", "full"))
        _require("--picture-mode", self.picture_mode, ("stretch", "crop"))
        if self.module is None:
            self._check_without_module()
        elif self.run is not None:
            raise ExportError("RUN and --module name two networks; give one of them.")
        elif self.data is None:
            raise ExportError("--module needs real pictures for the parity check; name them with --data.")
        three_numbers("--mean", self.mean)
        three_numbers("--std", self.deviation)

    def _check_without_module(self) -> None:
        given = {
            "--state": self.state,
            "--image-size": self.image_size,
            "--picture-mode": self.picture_mode if self.picture_mode != "stretch" else None,
            "--mean": self.mean,
            "--std": self.deviation,
            "--name": self.name,
        }
        for option in (name for name, value in given.items() if value is not None):
            raise ExportError(f"{option} describes the network of --module; a run describes itself. Leave it out.")


def _require(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ExportError(f"{option} {printable(value)!r}; expected {' or '.join(allowed)}.")


def three_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Parse ``R,G,B``.

    Raises:
        ExportError: it has another format.

    """
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise ExportError(f"{option} {printable(text)!r}; expected three numbers, such as 0.485,0.456,0.406.") from None
    return red, green, blue
