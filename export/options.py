"""The options of ``deeprank-export``, checked before PyTorch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..runtime.cli import ThreadsOption
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
        str | None,
        typer.Option(
            "--precision",
            help="fp32; fp16: half the size, for GPUs; int8: a third to a quarter, for CPUs. ONNX only. Default: "
            "fp32, or that of the file of --from-onnx.",
        ),
    ] = None
    input: Annotated[
        str,
        typer.Option(
            "--input",
            help="uint8: the file takes plain pixels. float: write a second file beside it, which takes normalised "
            "float32 pixel_values [n, 3, S, S], for programs with their own preprocessing. ONNX only.",
        ),
    ] = "uint8"
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
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="RULE|CSV",
            help="Where labels come from: top (the first class folder), leaf (the innermost), path (all of them, "
            "joined by /), a CSV of path,label[,split], or none. Default: top, or DATA's metadata.csv.",
        ),
    ] = None
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
        typer.Option("--min-cosine", help="Smallest cosine with the original's vector; tighter than documented."),
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
    from_onnx: Annotated[
        Path | None,
        typer.Option(
            "--from-onnx",
            metavar="FILE",
            help="Instead of RUN: an ONNX file from elsewhere, such as model.onnx of a Hugging Face repository. "
            "Needs no PyTorch.",
        ),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(
            "--output", metavar="NAME", help="With --from-onnx: its output with the vectors. Default: the usual one."
        ),
    ] = None
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool",
            help="With --from-onnx, for an output of one vector a token or place: cls (the class token) or mean. "
            "none: it is one vector a picture.",
        ),
    ] = None
    preprocessor: Annotated[
        Path | None,
        typer.Option(
            "--preprocessor",
            metavar="FILE",
            help="With --module or --from-onnx: preprocessor_config.json, or timm's config.json, which states how "
            "pictures are prepared. Default for --from-onnx: the one beside it.",
        ),
    ] = None
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            min=1,
            help="With --module or --from-onnx: pixels that pictures are resized to: their shorter side with --crop, "
            "else both sides.",
        ),
    ] = None
    crop: Annotated[
        int | None,
        typer.Option("--crop", min=1, max=2048, help="With --size: side of the centred square that is cut out."),
    ] = None
    interpolation: Annotated[
        str | None,
        typer.Option("--interpolation", help="With --module or --from-onnx: bilinear (default), bicubic or lanczos."),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", min=1, max=2048, help="With --module: side S of its input. Default: timm's, else 224."
        ),
    ] = None
    picture_mode: Annotated[
        str | None,
        typer.Option(
            "--picture-mode",
            help="With --module or --from-onnx: stretch, crop (the centred square) or letterbox (the whole picture "
            "with black bars).",
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean",
            help="With --module or --from-onnx: mean as R,G,B, for pixels in 0..1. Default: that of --preprocessor; "
            "with --module timm's or ImageNet's.",
        ),
    ] = None
    deviation: Annotated[str | None, typer.Option("--std", help="Standard deviation; otherwise like --mean.")] = None
    name: Annotated[
        str | None, typer.Option("--name", help="With --module or --from-onnx: name of the model in the file.")
    ] = None
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
            form_of(self.format, self.precision or "fp32")
        elif self.precision not in (None, "fp32"):
            raise ExportError(f"--format all writes every precision; leave --precision {self.precision} out.")
        if self.report is not None and not self.report.absolute().parent.is_dir():
            raise ExportError(f"--report {display_path(self.report)}: its folder does not exist; make it first.")
        _require("--parity", self.parity, ("sample", "full"))
        _require("--input", self.input, ("uint8", "float"))
        _require("--pool", self.pool, ("cls", "mean", "none"))
        _require("--interpolation", self.interpolation, ("bilinear", "bicubic", "lanczos"))
        _require("--picture-mode", self.picture_mode, ("stretch", "crop", "letterbox"))
        if self.input == "float" and self.format != "onnx":
            raise ExportError(f"--input float writes an ONNX file; leave --format {self.format} out.")
        self._check_source()
        self._check_picture()
        three_numbers("--mean", self.mean)
        three_numbers("--std", self.deviation)

    def _check_source(self) -> None:
        """Refuse two networks, and options that belong to another source."""
        sources = {"RUN": self.run, "--module": self.module, "--from-onnx": self.from_onnx}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) > 1:
            raise ExportError(f"{' and '.join(given)} name {len(given)} networks; give one of them.")
        if self.from_onnx is None:
            _refuse({"--pool": self.pool, "--output": self.output}, "--from-onnx", "The file to write is --out.")
        if self.module is None:
            _refuse({"--state": self.state, "--image-size": self.image_size}, "--module")
            if self.from_onnx is None:
                self._check_run()
        elif self.data is None:
            raise ExportError("--module needs real pictures for the parity check; name them with --data.")
        if self.from_onnx is not None and self.format != "onnx":
            raise ExportError(f"--from-onnx becomes an ONNX file; --format {self.format} needs a network in PyTorch.")

    def _check_run(self) -> None:
        described = {
            "--preprocessor": self.preprocessor,
            "--size": self.size,
            "--crop": self.crop,
            "--interpolation": self.interpolation,
            "--picture-mode": self.picture_mode,
            "--mean": self.mean,
            "--std": self.deviation,
            "--name": self.name,
        }
        for option in (name for name, value in described.items() if value is not None):
            raise ExportError(
                f"{option} describes the network of --module or --from-onnx; a run describes itself. Leave it out."
            )

    def _check_picture(self) -> None:
        """Refuse contradictory descriptions of the picture."""
        stated = {"--size": self.size, "--crop": self.crop, "--interpolation": self.interpolation}
        if self.preprocessor is not None:
            more = stated | {"--image-size": self.image_size, "--picture-mode": self.picture_mode}
            for option in (name for name, value in more.items() if value is not None):
                raise ExportError(f"--preprocessor and {option} both say how pictures are prepared; give one of them.")
        if self.crop is not None and (self.size is None or self.size < self.crop):
            raise ExportError(
                f"--crop {self.crop} is cut from pictures that --size makes; expected --size of at least {self.crop}."
            )
        if self.image_size is not None and self.size is not None:
            raise ExportError("--image-size and --size both name the side of the input; give one of them.")
        if self.crop is not None and self.picture_mode == "letterbox":
            raise ExportError("--crop cuts a picture, and --picture-mode letterbox keeps all of it; give one of them.")


def _refuse(given: dict[str, object], source: str, advice: str = "") -> None:
    for option in (name for name, value in given.items() if value is not None):
        hint = f" {advice}" if advice and option == "--output" else ""
        raise ExportError(f"{option} describes the network of {source}; leave it out.{hint}")


def _require(option: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise ExportError(f"{option} {printable(value)!r}; expected {', '.join(allowed[:-1])} or {allowed[-1]}.")


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
