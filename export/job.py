"""One call of the export command: load the network, open the pictures, write the files."""

from __future__ import annotations

import json
from pathlib import Path

from ..runtime.console import from_here
from ..runtime.datasets import DataSet, open_dataset, open_unlabelled
from ..runtime.errors import ExportError
from ..runtime.files import write_result
from ..runtime.progress import StartProgress
from .formats.formats import form_of
from .metadata import refused_as_export
from .options import ALL, ExportOptions
from .package import Bundle, Checks, Package, export_all, export_package
from .sample import DRAWN, drawn_pictures
from .source import source_of
from .tables import bundle_json, bundle_markdown

__all__ = ["Job"]


class Job:
    """One call of ``deeprank-export``; ``dataset``: its pictures, ``labels``: their source.

    Raises:
        DeepRankError: the network or the pictures cannot be loaded.

    """

    def __init__(self, options: ExportOptions, progress: StartProgress) -> None:
        self._options = options
        self._source = source_of(options)
        self._check_precision()
        self._data = options.data or self._source.data
        self.labels = options.labels
        self.dataset = self._opened()
        self._checks = Checks(
            full=options.parity == "full",
            threads=options.threads,
            calibration_pictures=options.calibration_pictures,
            sample_pictures=options.sample_pictures,
            max_abs_difference=options.max_difference,
            min_cosine=options.min_cosine,
            precision_change=options.precision_change,
            float_input=options.input == "float",
            progress=progress,
        )

    def _check_precision(self) -> None:
        has = self._source.network.precision
        if self._precision != has != "fp32":
            raise ExportError(
                f"The network is {has} already, and --precision {self._precision} is made from fp32; name the fp32 "
                "file with --from-onnx, or leave --precision out."
            )

    def _opened(self) -> DataSet:
        if self._data is None:
            return self._own_pictures()
        if self.labels == "none":
            return open_unlabelled(self._data)
        if self.labels is None:
            self.labels = self._source.labels_of(self._data)
        return self._source.split(open_dataset(self._data, labels=self.labels))

    def _own_pictures(self) -> DataSet:
        """Return the pictures of the source, or drawn ones.

        Raises:
            ExportError: the form is calibrated, which needs real pictures.

        """
        own = self._source.pictures()
        if own is None and self._precision == "int8" != self._source.network.precision:
            raise ExportError("int8 is calibrated on real pictures; name them with --data.")
        return drawn_pictures() if own is None else own

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was chosen without being asked for, to show."""
        if self.labels == "none":
            count = f"{len(self.dataset.unsplit):,} pictures without labels"
            return (*self._source.remarks, f"{count}: vectors and neighbours prove the file; precision says nothing.")
        if self._data is not None or self.dataset.name != DRAWN:
            return self._source.remarks
        drawn = "The proof takes drawn pictures; name your own with --data to see how the model ranks them."
        return (*self._source.remarks, drawn)

    @property
    def out(self) -> Path:
        """The file, or the folder of all forms."""
        options = self._options
        if options.out is not None:
            return options.out
        if options.format == ALL:
            return Path("exported")
        return Path(f"model{form_of(options.format, self._precision).suffix}")

    @property
    def _precision(self) -> str:
        return self._options.precision or self._source.network.precision

    @property
    def pictures(self) -> Path | None:
        """The folder of the data set, as a path to type here; None if it is not a folder."""
        folder = None if self._data is None else Path(self._data)
        return from_here(folder.resolve()) if folder is not None and folder.is_dir() else None

    def one_form(self) -> Package:
        """Write the form of ``--format`` and ``--precision``."""
        source, form = self._source, form_of(self._options.format, self._precision)
        with refused_as_export():
            return export_package(
                source.network, source.info, source.original, self.dataset, self.out, form=form, checks=self._checks
            )

    def all_forms(self) -> Bundle:
        """Write every form, and the comparison as ``comparison.md`` and ``comparison.json``."""
        source = self._source
        bundle = export_all(source.network, source.info, source.original, self.dataset, self.out, checks=self._checks)
        document = bundle_markdown(bundle)
        listed = json.dumps(bundle_json(bundle), indent=2) + "\n"
        write_result(listed.encode(), self.out / "comparison.json", ExportError)
        write_result(document.encode(), self.out / "comparison.md", ExportError)
        if self._options.report:  # through a link or to /dev/stdout, so not by renaming
            self._options.report.write_text(document, encoding="utf-8")
        return bundle
