"""``deeprank-doctor``: check the installation, model, index and parity, and suggest fixes."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ..cli import (
    DeviceOption,
    JsonOption,
    ModelOption,
    VerboseOption,
    VersionOption,
    application,
    emit_json,
    guarded,
    index_option,
    note,
    progress_in_stages,
)
from ..console import DEFAULT_INDEX
from ..text import display_width, printable
from .checks import DoctorOptions, DoctorReport, examine
from .finding import Finding, Status

__all__ = ["SCHEMA", "document", "lines"]


SCHEMA = 1
_STATUS_WIDTH = max(map(len, get_args(Status)))


def document(diagnosis: DoctorReport) -> dict[str, Any]:
    """Return the document of ``--json``."""
    return {
        "schema": SCHEMA,
        "healthy": diagnosis.healthy,
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "versions": dict(diagnosis.versions),
    }


def lines(findings: Sequence[Finding]) -> list[str]:
    """Return a line for each finding, one more for its fix or hint, and their count."""
    width = max((display_width(finding.check) for finding in findings), default=0)
    shown = [line for finding in findings for line in _lines(finding, width)]
    return [*shown, "", _count(findings)]


def _lines(finding: Finding, width: int) -> list[str]:
    begin = f"{finding.status:<{_STATUS_WIDTH}}  "
    said = [f"{begin}{finding.check:<{width}}  {printable(finding.found)}"]
    if finding.fix is not None:
        word = "hint" if finding.status in ("ok", "skipped") else "fix"
        said.append(f"{' ' * len(begin)}{word}: {printable(finding.fix)}")
    return said


def _count(findings: Sequence[Finding]) -> str:
    count = Counter(finding.status for finding in findings)
    warnings, problems = count["warning"], count["problem"]
    return (
        f"{count['ok']} ok, {warnings} warning{'' if warnings == 1 else 's'}, "
        f"{problems} problem{'' if problems == 1 else 's'}, {count['skipped']} skipped"
    )


app = application(
    "Check the installation, the model, the index and parity, and suggest fixes.",
    [
        "deeprank-doctor",
        "deeprank-doctor --index my.index --thorough",
        "deeprank-doctor --reference model.reference.npz --data photos",
        "deeprank-doctor --device cuda --json",
    ],
)


@app.command()
@guarded
def doctor_command(
    index: Annotated[Path | None, index_option(show_default=f"./{DEFAULT_INDEX}, if it exists")] = None,
    model: ModelOption = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="FILE.npz",
            help="PyTorch's vectors to compare with. Default: those of the bundled model, or beside the model.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="The data set of the reference's pictures, if the reference does not carry them itself."
        ),
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Check every part of the index, as deeprank-index verify does.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    version: VersionOption = False,
) -> None:
    """Check the installation, the model, the index and parity, and suggest fixes.

    The exit status is 1 if there is a problem, 0 with warnings alone. The doctor changes nothing.
    """
    options = DoctorOptions(
        index=index or DEFAULT_INDEX,
        index_named=index is not None,
        model=model,
        reference=reference,
        data=data,
        device=device,
        thorough=thorough,
    )
    with progress_in_stages() as start:
        diagnosis = examine(options, start=start, failed=_show if verbose else lambda error: None)
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
