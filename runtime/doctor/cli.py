"""``deeprank-doctor``: check the installation, model, index and parity, and suggest fixes."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated, cast

import typer

from ..cli import VerboseOption, VersionOption, application, emit_json, guarded, note, progress_in_stages
from ..devices import Device
from .examine import Asked, examine
from .presentation import document, lines

# The default of deeprank-index; importing it needs numpy, which may be broken.
DEFAULT_INDEX = Path("deeprank.index")

app = application(
    "Check the installation, the model, the index and parity, and say what puts right what is not.",
    [
        "deeprank-doctor",
        "deeprank-doctor --index my.index --thorough",
        "deeprank-doctor --reference model.reference.npz --data photos",
        "deeprank-doctor --device cuda --json",
    ],
)


def _known_device(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"{device!r} is unknown; expected auto, cpu or cuda.")
    return device


@app.command()
@guarded
def doctor_command(
    index: Annotated[
        Path | None,
        typer.Option(
            "--index",
            envvar="DEEPRANK_INDEX",
            metavar="DIR",
            help="The index folder.",
            show_default=f"./{DEFAULT_INDEX}, if it is there",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="The model. Default: ./model.onnx, else the one that ships (the word pretrained)."
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="FILE.npz",
            help="PyTorch's vectors to compare with. Default: the *.reference.npz beside the model.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="The data set of the reference's pictures: measure parity on this box."),
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Check every part of the index, as deeprank-index verify does.")
    ] = False,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="DEVICE", callback=_known_device, help="auto, cpu or cuda: what is to run models."
        ),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    verbose: VerboseOption = False,
    version: VersionOption = False,
) -> None:
    """Check the installation, the model, the index and parity, and say what puts right what is not.

    Exits with 1 if there is a problem; warnings are none. Nothing is changed.
    """
    asked = Asked(
        index=index or DEFAULT_INDEX,
        index_named=index is not None,
        model=model,
        reference=reference,
        data=data,
        device=cast(Device, device),
        thorough=thorough,
    )
    with progress_in_stages() as start:
        diagnosis = examine(asked, start=start, failed=_show if verbose else lambda error: None)
    if as_json:
        emit_json(document(diagnosis))
    else:
        print("\n".join(lines(diagnosis.findings)))
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _show(error: Exception) -> None:
    note("".join(traceback.format_exception(error)).rstrip())


def main() -> None:
    """Run the command."""
    app()
