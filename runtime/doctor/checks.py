"""All checks in order; an error in one becomes a finding, and the others still run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..devices import Device
from ..errors import DeepRankError, ModelFileError
from ..progress import StartProgress, start_nothing
from ..text import first_line
from .finding import Finding, problem, skipped
from .hnswlib_build import graph_library_finding
from .isolated import CPU, import_onnxruntime, try_apart
from .onnx_runtime import CHECK, onnxruntime_finding, runtimes_finding
from .packages import package_findings, versions

if TYPE_CHECKING:
    from ..modelfile import OpenModel

__all__ = ["DoctorOptions", "DoctorReport", "examine"]

T = TypeVar("T")

_AGAIN = "follow the sentence, and run deeprank-doctor again"
_REPORT = "run deeprank-doctor -v, which shows where it failed, and report it"


@dataclass(frozen=True)
class DoctorOptions:
    """What to check.

    Attributes:
        index: folder of an index.
        index_named: the index must exist. If false, a missing one is no problem.
        model: a model file, or the name of a bundled one. None: the default of the commands.
        reference: a reference sample. None: the one beside the model.
        data: the data set of the sample's pictures. None: parity is measured if the sample carries them.
        device: runs the models.
        thorough: check every part of the index, as ``deeprank-index verify`` does.

    """

    index: Path
    index_named: bool = False
    model: Path | None = None
    reference: Path | None = None
    data: str | None = None
    device: Device = "auto"
    thorough: bool = False


@dataclass(frozen=True)
class DoctorReport:
    """The findings, and the versions of all packages (None if not installed)."""

    findings: tuple[Finding, ...]
    versions: Mapping[str, str | None]

    @property
    def healthy(self) -> bool:
        """Whether no finding is a problem; there may be warnings."""
        return all(finding.status != "problem" for finding in self.findings)


def examine(
    options: DoctorOptions,
    *,
    start: StartProgress = start_nothing,
    failed: Callable[[Exception], None] = lambda error: None,
) -> DoctorReport:
    """Run every check, without writing anything.

    Args:
        options: what to check.
        start: told how long work goes on.
        failed: told of every exception that became a finding.

    """
    examination = _Examination(options, start, failed)
    examination.tried("installation", examination.installation)
    examination.tried(CHECK, examination.onnxruntime)
    examination.tried("model", examination.model)
    examination.tried("index", examination.index)
    examination.tried("parity", examination.parity)
    return DoctorReport(tuple(examination.findings), examination.tried("versions", versions) or {})


class _Examination:
    """The findings so far, and results that later checks need."""

    def __init__(self, options: DoctorOptions, start: StartProgress, failed: Callable[[Exception], None]) -> None:
        self.findings: list[Finding] = []
        self._options, self._start, self._failed = options, start, failed
        self._device: Device = options.device
        self._runs = self._graphs = False
        self._opened: OpenModel | None = None

    def tried(self, check: str, work: Callable[[], T]) -> T | None:
        """Return the result of ``work``; if it raises, add a problem and return None."""
        try:
            return work()
        except DeepRankError as error:
            self._failed(error)
            self.findings.append(problem(check, str(error), _AGAIN))
        except Exception as error:  # a failed check must not prevent the others
            self._failed(error)
            what = first_line(error, named=True)
            self.findings.append(problem(check, f"it cannot be checked ({what})", _REPORT))
        return None

    def add(self, check: str, work: Callable[[], Finding]) -> Finding | None:
        """Run one check and add its finding."""
        finding = self.tried(check, work)
        if finding is not None:
            self.findings.append(finding)
        return finding

    def installation(self) -> None:
        """Check packages, picture formats and the processor."""
        from .packages import cores_finding, formats_finding, processor_finding

        self.findings += self.tried("packages", package_findings) or []
        self.add("picture formats", formats_finding)
        self.add("processor", processor_finding)
        self.add("cores", cores_finding)
        built = self.add("hnswlib build", graph_library_finding)
        self._graphs = built is not None and built.status == "ok"

    def onnxruntime(self) -> None:
        """Check ONNX Runtime and its providers."""
        packages = runtimes_finding()
        outcome = try_apart(import_onnxruntime)
        self.add(CHECK, lambda: onnxruntime_finding(packages, outcome))
        if outcome.value is not None:
            self._providers(outcome.value["providers"])

    def _providers(self, listed: Sequence[str]) -> None:
        from .onnx_runtime import device_finding, provider_findings

        model = self._model_to_try()
        if model is None:
            self.findings.append(skipped("providers", "there is no model to try them with"))
            return
        tried = provider_findings(listed, model)
        self.findings += tried
        taken = self.add("device", lambda: device_finding(self._options.device, tried))
        if taken is None or taken.status == "problem":
            self._device = "cpu"
        self._runs = any(finding.check == CPU and finding.status == "ok" for finding in tried)

    def _model_to_try(self) -> Path | None:
        """Return a model that should run anywhere: the bundled one, else another that exists."""
        from ..index.layout import MODEL
        from ..model.pretrained import LOCAL_MODEL, pretrained_model

        shipped = pretrained_model("fp32")
        there = (shipped, self._options.model, LOCAL_MODEL, self._options.index / MODEL)
        return next((path for path in there if path is not None and path.is_file()), None)

    def model(self) -> None:
        """Check the model."""
        from ..modelfile import open_model
        from .model import describe, export_again, model_finding, report_finding

        if not self._runs:
            self.findings.append(skipped("model", "no model can be run here; see above"))
            return
        path = self._chosen()
        if path is None:
            return
        opened = open_model(path, device=self._device)
        sound = self.add(
            "model", lambda: model_finding("model", opened, where=describe(opened), fix=export_again(opened.path))
        )
        self.add("model report", lambda: report_finding(opened))
        self._opened = opened if sound is not None and sound.status != "problem" else None

    def _chosen(self) -> Path | None:
        from ..model.pretrained import find_model

        try:
            return find_model(self._options.model)
        except ModelFileError as error:
            if self._options.model is not None:
                raise
            self.findings.append(skipped("model", str(error)))
            return None

    def index(self) -> None:
        """Check the index, if there is one."""
        from .index import database_finding, half_done_finding, is_there, missing_finding

        folder = self._options.index
        if not is_there(folder):
            self.findings.append(missing_finding(folder, named=self._options.index_named))
            return
        half_done = half_done_finding(folder)
        if half_done is not None:
            self.findings.append(half_done)
        elif (opened := self.add("index", lambda: database_finding(folder))) and opened.status != "problem":
            self._inside(folder)
        self._around(folder)

    def _inside(self, folder: Path) -> None:
        from .index import contents_finding, graph_finding, has_ratings, index_model_finding, ratings_finding

        if self._runs:
            self.add("index model", lambda: index_model_finding(folder, self._opened, self._device))
        self.add("index graph", lambda: graph_finding(folder))
        if has_ratings(folder):
            self.add("index ratings", lambda: ratings_finding(folder))
        if self._options.thorough:
            self.add("index contents", lambda: contents_finding(folder))

    def _around(self, folder: Path) -> None:
        from .index import disk_finding, file_system_finding, writer_finding

        self.add("index writer", lambda: writer_finding(folder))
        self.add("index disk", lambda: disk_finding(folder))
        self.add("index file system", lambda: file_system_finding(folder))

    def parity(self) -> None:
        """Check the reference sample, and measure parity if its pictures are at hand."""
        from .parity import find_samples, no_data_finding, no_sample_finding, parity_finding, sample_finding

        opened, data = self._opened, self._options.data
        if opened is None:
            self.findings.append(skipped("parity", "no model could be measured; see above"))
            return
        samples = self.tried("reference sample", lambda: find_samples(self._options.reference, opened))
        if samples is None:
            return
        if not samples:
            self.findings.append(no_sample_finding(data))
            return
        ((path, sample),) = samples
        self.findings.append(sample_finding(path, sample))
        if data is None and not sample.pictures:
            self.findings.append(no_data_finding(path))
            return
        self.add(
            "parity",
            lambda: parity_finding(opened, sample, data, through_graph=self._graphs, start=self._start),
        )
