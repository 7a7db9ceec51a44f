"""The export forms: a file format, and the precision of its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...runtime.errors import ExportError

__all__ = ["FORMATS", "FORMS", "PRECISIONS", "Form", "Format", "Precision", "form_of"]

Format = Literal["onnx", "torchscript", "pt2"]
Precision = Literal["fp32", "fp16", "int8"]
FORMATS: tuple[Format, ...] = ("onnx", "torchscript", "pt2")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

_NAMES = {"onnx": "ONNX", "torchscript": "TorchScript", "pt2": ".pt2"}
_SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}


@dataclass(frozen=True)
class Form:
    """One of :data:`FORMS`."""

    format: Format
    precision: Precision

    @property
    def name(self) -> str:
        """The display name."""
        return f"{_NAMES[self.format]} {self.precision}"

    @property
    def suffix(self) -> str:
        """The suffix of its file name."""
        return _SUFFIXES[self.format]

    @property
    def file_name(self) -> str:
        """The name of its file beside those of the other forms."""
        middle = "" if self.precision == "fp32" else f".{self.precision}"
        return f"model{middle}{self.suffix}"


# The plain ONNX file first: the others are compared with it.
FORMS: tuple[Form, ...] = (
    Form("onnx", "fp32"),
    Form("onnx", "fp16"),
    Form("onnx", "int8"),
    Form("torchscript", "fp32"),
    Form("pt2", "fp32"),
)


def form_of(format_: str, precision: str) -> Form:
    """Return the form of that format and precision.

    Raises:
        ExportError: there is no such form.

    """
    for form in FORMS:
        if (form.format, form.precision) == (format_, precision):
            return form
    if format_ in FORMATS and precision in PRECISIONS:
        raise ExportError(
            f"--format {format_} --precision {precision}; {_NAMES[format_]} files are written only as fp32. "
            f"Use --format onnx for {precision}."
        )
    what, given, allowed = (
        ("--precision", precision, PRECISIONS) if format_ in FORMATS else ("--format", format_, (*FORMATS, "all"))
    )
    raise ExportError(f"{what} {given!r}; expected {', '.join(allowed[:-1])} or {allowed[-1]}.")
