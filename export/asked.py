"""The options of ``deeprank-export``, checked before PyTorch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import ExportError
from ..runtime.text import display_path, printable
from .forms import form_of

__all__ = ["ALL", "Asked", "three_numbers"]

ALL = "all"


@dataclass(frozen=True)
class Asked:
    """The options, by the names of :func:`~.cli.export_command`."""

    run: Path | None
    format: str
    precision: str
    out: Path | None
    data: str | None
    parity: str
    calibration_pictures: int
    max_difference: float | None
    min_cosine: float | None
    precision_change: float | None
    report: Path | None
    module: str | None
    state: Path | None
    image_size: int | None
    picture_mode: str
    mean: str | None
    deviation: str | None
    name: str | None
    threads: int | None
    labels: str | None = None

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
            raise ExportError(f"--report {display_path(self.report)}: there is no such folder; make it first.")
        _require("--parity", self.parity, ("sample", "full"))
        _require("--picture-mode", self.picture_mode, ("stretch", "crop"))
        if self.module is None:
            self._check_without_module()
        elif self.run is not None:
            raise ExportError("RUN and --module name two networks; give one of them.")
        elif self.data is None:
            raise ExportError("--module needs real pictures for its proof; name them with --data.")
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
