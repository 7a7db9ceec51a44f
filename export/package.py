"""Export as a whole: write under a temporary name, check, and only then put the files in their places."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from torch import nn

from ..runtime.datasets import DataSet
from ..runtime.embedder import Embedder
from ..runtime.errors import ExportError
from ..runtime.evaluate.embedded import Embeds
from ..runtime.evaluate.reference import save_reference
from ..runtime.files import file_sha256, replace_durably
from ..runtime.modelfile import ModelInfo
from ..runtime.progress import StartProgress, start_nothing
from ..runtime.text import display_path
from .onnx import write_onnx
from .parity import Exported, ParityReport, check_parity
from .torchscript import TorchScriptModel, write_torchscript

__all__ = ["Format", "Package", "export_package"]

Format = Literal["onnx", "torchscript"]


@dataclass(frozen=True)
class Package:
    """The files of an export and what the parity check found."""

    model: Path
    parity: Path
    reference: Path
    report: ParityReport
    size: int


def export_package(
    network: nn.Module,
    info: ModelInfo,
    reference: Embeds,
    dataset: DataSet,
    out: Path,
    *,
    form: Format = "onnx",
    full: bool = False,
    threads: int | None = None,
    progress: StartProgress = start_nothing,
) -> Package:
    """Write the model, ``*.parity.json`` and ``*.reference.npz``, all three or none.

    Args:
        network: float32, on the CPU, in evaluation mode.
        info: what the file is to say of itself; the versions are added here.
        reference: the same network as PyTorch runs it.
        dataset: real pictures for the check.
        out: the model file; the others are named after it.
        form: ``onnx`` or ``torchscript``.
        full: check on all pictures instead of a sample.
        threads: of ONNX Runtime during the check.
        progress: see :func:`~.parity.check_parity`.

    Raises:
        ExportError: the network cannot be written, or the file does not rank like it; earlier files of these names
            stay as they were.

    """
    info = replace(info, versions=_versions(form))
    if not out.parent.is_dir():
        raise ExportError(f"{display_path(out.parent)} does not exist; expected a folder to write {out.name} into.")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        model = Path(scratch) / out.name
        exported = _written(network, info, model, form, threads)
        report = check_parity(reference, exported, dataset, info.precision, full=full, progress=progress)
        if report.failures:
            raise ExportError(
                f"The exported file does not rank like the PyTorch network: {'; '.join(report.failures)}. "
                f"{display_path(out)} was not written."
            )
        return _place(model, out, report, info, dataset, form)


def _written(network: nn.Module, info: ModelInfo, model: Path, form: Format, threads: int | None) -> Exported:
    """Write the file and open it."""
    if form == "onnx":
        write_onnx(network, info, model)
        return Embedder(model, device="cpu", threads=threads)
    write_torchscript(network, info, model)
    return TorchScriptModel(model)


def _place(model: Path, out: Path, report: ParityReport, info: ModelInfo, dataset: DataSet, form: Format) -> Package:
    parity, reference = out.with_suffix(".parity.json"), out.with_suffix(".reference.npz")
    about = {
        "model": out.name,
        "sha256": file_sha256(model),
        "format": form,
        "precision": info.precision,
        "data": dataset.name,
        "data_fingerprint": dataset.fingerprint,
        "versions": dict(info.versions),
    }
    scratch_parity, scratch_reference = model.with_suffix(".json"), model.with_suffix(".npz")
    scratch_parity.write_text(report.to_json(**about), encoding="utf-8")
    save_reference(scratch_reference, report.queries, report.gallery)
    size = model.stat().st_size
    # The model last: where this is cut short, the report's sha256 shows that it does not speak of the older model.
    for source, target in ((scratch_reference, reference), (scratch_parity, parity), (model, out)):
        replace_durably(source, target)
    return Package(out, parity, reference, report, size)


def _versions(form: Format) -> dict[str, str]:
    packages = ["deep-ranking", "torch"] + (["onnx", "onnxscript"] if form == "onnx" else [])
    return {package: version(package) for package in packages}
