"""Export: write under temporary names, check, time, and only then move the files to their places."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runtime.datasets import DataSet
from ..runtime.devices import processor, session_options
from ..runtime.errors import ExportError, ModelFileError
from ..runtime.evaluate.parity import TOLERANCES, Tolerance
from ..runtime.evaluate.reference import check_carried, save_pictures, save_reference
from ..runtime.evaluate.speed import Speed, measure_speeds
from ..runtime.files import file_sha256, replace_durably
from ..runtime.images import Picture
from ..runtime.modelfile import ModelInfo
from ..runtime.progress import StartProgress, start_nothing
from ..runtime.text import display_path
from .formats.formats import FORMS, Form
from .formats.writer import Network, Writer, Written
from .parity import (
    Exported,
    Original,
    ParityReport,
    ReferenceSide,
    Speeds,
    check_parity,
    compared_pictures,
    embed_reference,
)
from .quantise.search import Quantisation
from .sample import load_sample

__all__ = [
    "CALIBRATION_PICTURES",
    "Bundle",
    "Checks",
    "Files",
    "FloatFiles",
    "Package",
    "export_all",
    "export_package",
    "measure",
    "speeds_of",
]


# For latency and for throughput of each runner: enough for a ratio of two digits.
_SECONDS = 0.6

CALIBRATION_PICTURES = 300
# Shared by all forms of one network, since the reference's vectors are the same.
_SHARED_REFERENCE = "model.reference.npz"

FP32 = FORMS[0]


@dataclass(frozen=True)
class Checks:
    """How an export is checked.

    ``full``: on all pictures instead of a sample. ``threads``: of PyTorch and ONNX Runtime.
    ``calibration_pictures``: number from the train split, for int8. ``sample_pictures``: whether
    ``*.reference.npz`` carries the pictures of the check. ``max_abs_difference``,
    ``min_cosine``, ``precision_change``: tighter than the documented tolerances of each precision;
    None keeps these. ``float_input``: whether the float form is written and checked, too.
    """

    full: bool = False
    threads: int | None = None
    calibration_pictures: int = CALIBRATION_PICTURES
    sample_pictures: bool = False
    max_abs_difference: float | None = None
    min_cosine: float | None = None
    precision_change: float | None = None
    float_input: bool = False
    progress: StartProgress = field(default=start_nothing)

    def tolerance(self, form: Form) -> Tolerance:
        """Return the tolerance for a form.

        Raises:
            EvaluationError: a limit is looser than documented.

        """
        return TOLERANCES[form.precision].tightened(self.max_abs_difference, self.min_cosine, self.precision_change)


@dataclass(frozen=True)
class FloatFiles:
    """The float form of a file, its parity report, and its preparation for other programs, or None."""

    model: Path
    preprocessor: Path | None
    report: ParityReport


@dataclass(frozen=True)
class Package:
    """The files of one form and its parity report; ``quantisation`` for int8 only."""

    form: Form
    model: Path
    parity: Path
    reference: Path
    report: ParityReport
    size: int
    data: str
    quantisation: Quantisation | None
    float_input: FloatFiles | None = None


@dataclass(frozen=True)
class Bundle:
    """Every form that passed, and the reasons of the others."""

    packages: tuple[Package, ...]
    failures: tuple[tuple[Form, str], ...]


def export_package(
    network: Network,
    info: ModelInfo,
    reference: Original,
    dataset: DataSet,
    out: Path,
    *,
    form: Form = FP32,
    checks: Checks | None = None,
) -> Package:
    """Write the model, ``*.parity.json``, ``*.reference.npz`` and, if asked, the float form; all or none.

    Args:
        network: the source of the file.
        info: metadata of the file; precision and versions are added here.
        reference: the same network as its makers run it.
        dataset: real pictures for the check, and for calibration.
        out: the model file; the others are named after it.
        form: the form to write.
        checks: how to check it.

    Raises:
        ExportError: the network cannot be written, or the file does not rank like it; earlier files
            of these names stay unchanged.
        OSError: a file cannot be written; likewise.

    """
    checks = checks or Checks()
    tolerance = checks.tolerance(form)
    with _scratch(out) as scratch:
        export = _Export(network, info, reference, dataset, checks)
        written = export.writer.write(form, scratch / out.name)
        report = export.passed(written.exported, tolerance, f"{display_path(out)} was not written")
        beside = export.float_form(written, out, tolerance) if checks.float_input else None
        plain = written
        if form.precision != network.precision == "fp32":
            plain = export.writer.write(FP32, scratch / "fp32.onnx")
        speeds = measure(reference, {form.name: written.exported, plain.form.name: plain.exported}, checks.threads)
        report = report.with_speeds(speeds_of(speeds, reference, form.name, plain.form.name, checks.threads))
        files = Files(out, out.with_suffix(".parity.json"), out.with_suffix(".reference.npz"))
        return _placed(_finished(written, files, report, dataset, carrying=checks.sample_pictures, beside=beside))


def export_all(
    network: Network,
    info: ModelInfo,
    reference: Original,
    dataset: DataSet,
    folder: Path,
    *,
    checks: Checks | None = None,
) -> Bundle:
    """Write every form that ranks like the original into ``folder``.

    Args:
        network: see :func:`export_package`.
        info: see :func:`export_package`.
        reference: see :func:`export_package`.
        dataset: see :func:`export_package`.
        folder: created if missing; files of these names in it are replaced, others stay.
        checks: see :func:`export_package`.

    Raises:
        ExportError: the pictures are not suitable for a comparison, or no form can be written.
        OSError: a file cannot be written; nothing was moved to its place.

    """
    checks = checks or Checks()
    tolerances = {form: checks.tolerance(form) for form in FORMS}
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{display_path(folder)} is a file; expected a folder, or a name for a new one.")
    with _scratch(folder) as scratch:
        export = _Export(network, info, reference, dataset, checks)
        tried = {form: export.tried(form, scratch / form.file_name, tolerances[form]) for form in FORMS}
        passed = {form: result for form, result in tried.items() if not isinstance(result, str)}
        failures = tuple((form, why) for form, why in tried.items() if isinstance(why, str))
        if not passed:
            raise ExportError(f"No form can be written: {failures[0][0].name}: {failures[0][1]}")
        speeds = measure(reference, {form.name: one.exported for form, (one, _) in passed.items()}, checks.threads)
        plain = FP32.name if FP32 in passed else None
        finished = [
            _finished(
                written,
                Files(folder / form.file_name, folder / f"{form.file_name}.parity.json", folder / _SHARED_REFERENCE),
                report.with_speeds(speeds_of(speeds, reference, form.name, plain, checks.threads)),
                dataset,
                carrying=checks.sample_pictures,
            )
            for form, (written, report) in passed.items()
        ]
        folder.mkdir(exist_ok=True)
        return Bundle(tuple(_placed(one) for one in finished), failures)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out``, from which files can be renamed to their places."""
    if not out.parent.is_dir():
        raise ExportError(f"{display_path(out.parent)} does not exist; expected a folder to write {out.name} into.")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        yield Path(scratch)


class _Export:
    """The shared parts of all forms of one network: the writer, and the reference's vectors."""

    def __init__(
        self, network: Network, info: ModelInfo, reference: Original, dataset: DataSet, checks: Checks
    ) -> None:
        self._info, self._dataset, self._checks, self._engine = info, dataset, checks, reference.engine
        if checks.sample_pictures:
            check_carried(sum(compared_pictures(dataset, full=checks.full), start=()))
        self._side: ReferenceSide = embed_reference(reference, dataset, full=checks.full, progress=checks.progress)
        self.writer = Writer(network, info, self._calibration, checks.threads, checks.progress)

    def checked(self, exported: Exported, tolerance: Tolerance) -> ParityReport:
        return check_parity(self._side, exported, tolerance, progress=self._checks.progress)

    def passed(self, exported: Exported, tolerance: Tolerance, otherwise: str) -> ParityReport:
        """Check a file and refuse one that does not pass; ``otherwise`` ends the sentence."""
        report = self.checked(exported, tolerance)
        if report.failures:
            raise ExportError(
                f"The exported file does not rank like the {self._engine} network: {'; '.join(report.failures)}. "
                f"{otherwise}."
            )
        return report

    def float_form(self, written: Written, out: Path, tolerance: Tolerance) -> _Beside:
        """Write and check the float form of a file."""
        form = self.writer.write_float(written, written.path.with_suffix(".float.onnx"))
        report = self.passed(form.exported, tolerance, "That is its float form; no file was written")
        moves = [(form.path, out.with_suffix(".float.onnx"))]
        if form.preprocessor is not None:
            preprocessor = written.path.with_suffix(".preprocessor")
            preprocessor.write_text(form.preprocessor, encoding="utf-8")
            moves.append((preprocessor, out.with_suffix(".preprocessor_config.json")))
        return _Beside(tuple(moves), report)

    def tried(self, form: Form, path: Path, tolerance: Tolerance) -> tuple[Written, ParityReport] | str:
        """Write and check one form; return the reason if it fails."""
        try:
            written = self.writer.write(form, path)
            report = self.checked(written.exported, tolerance)
        except (ExportError, ModelFileError) as error:  # the latter: its vectors are unusable
            return str(error)
        if report.failures:
            return f"does not rank like the {self._engine} network: {'; '.join(report.failures)}"
        return written, report

    def _calibration(self) -> Picture:
        samples, most = self._dataset.train, self._checks.calibration_pictures
        advance = self._checks.progress("calibration pictures", min(most, len(samples)))
        return load_sample(samples, most, self._info.picture, advance)


@dataclass(frozen=True)
class Files:
    """Final paths of the three files of a form."""

    model: Path
    parity: Path
    reference: Path


@dataclass(frozen=True)
class _Beside:
    """The float form's files under temporary names, the moves to their final paths, and its report."""

    moves: tuple[tuple[Path, Path], ...]
    report: ParityReport

    @property
    def files(self) -> FloatFiles:
        """The final paths."""
        targets = [target for _, target in self.moves]
        return FloatFiles(targets[0], targets[1] if len(targets) > 1 else None, self.report)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        path, target = self.moves[0]
        return {
            "model": target.name,
            "sha256": file_sha256(path),
            **self.report.difference.to_dict(),
            **self.report.change.to_dict(),
        }


@dataclass(frozen=True)
class _Finished:
    """A form whose files are written under temporary names, and the moves to their final paths."""

    moves: tuple[tuple[Path, Path], ...]
    package: Package


def _finished(
    written: Written,
    files: Files,
    report: ParityReport,
    dataset: DataSet,
    *,
    carrying: bool,
    beside: _Beside | None = None,
) -> _Finished:
    scratch = written.path.parent
    parity, reference = scratch / f"{written.path.name}.json", scratch / f"{files.reference.name}.new"
    about = _about(written, files.model, dataset)
    if beside is not None:
        about["float_input"] = beside.to_dict()
    parity.write_text(report.to_json(**about), encoding="utf-8")
    if not reference.exists():  # all forms share one
        save = save_pictures if carrying else save_reference
        save(reference, report.queries, report.gallery)
    # The model last: after an interruption, the report's sha256 does not match the older model.
    others = () if beside is None else beside.moves
    moves = (*others, (reference, files.reference), (parity, files.parity), (written.path, files.model))
    package = Package(
        written.form,
        files.model,
        files.parity,
        files.reference,
        report,
        written.path.stat().st_size,
        dataset.name,
        written.quantisation,
        None if beside is None else beside.files,
    )
    return _Finished(moves, package)


def _placed(finished: _Finished) -> Package:
    for source, target in finished.moves:
        if source.exists():  # shared files are moved with the first form
            replace_durably(source, target)
    return finished.package


def _about(written: Written, out: Path, dataset: DataSet) -> dict[str, Any]:
    return {
        "model": out.name,
        "sha256": file_sha256(written.path),
        "bytes": written.path.stat().st_size,
        "format": written.form.format,
        "precision": written.info.precision,
        "data": dataset.name,
        "data_fingerprint": dataset.fingerprint,
        "versions": dict(written.info.versions),
        "quantisation": None if written.quantisation is None else written.quantisation.to_dict(),
    }


def measure(reference: Original, exported: Mapping[str, Exported], threads: int | None) -> dict[str, Speed]:
    """Measure the reference (under its engine's name) and files by name, in turn."""
    runners = {reference.engine: reference.embed_batch} | {name: one.embed_batch for name, one in exported.items()}
    with _torch_threads(session_options(threads)[1]):
        return measure_speeds(runners, reference.rule.size, seconds=_SECONDS)


def speeds_of(
    speeds: Mapping[str, Speed], reference: Original, name: str, fp32: str | None, threads: int | None
) -> Speeds:
    """Return the speeds of one file, of its reference and, if it is another, of the fp32 file."""
    return Speeds(
        threads=session_options(threads)[1],
        processor=processor(),
        reference=speeds[reference.engine],
        exported=speeds[name],
        fp32=None if fp32 is None or fp32 == name else speeds[fp32],
    )


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    if sys.modules.get("torch") is None:  # a graph from elsewhere is proved without it
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
