"""One call of the export command: load the network, open the pictures, write the files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ..runtime.console import from_here
from ..runtime.datasets import DataSet, open_dataset
from ..runtime.errors import ExportError
from ..runtime.files import write_result
from ..runtime.images import PictureRule
from ..runtime.modelfile import ModelInfo
from ..runtime.progress import StartProgress
from ..train.reference import NetworkReference, Reference
from .api import checked_info, foreign_network, refused_as_export
from .external_module import ModuleReference, module_from_factory
from .formats.formats import form_of
from .options import ALL, ExportOptions, three_numbers
from .package import Bundle, Checks, Package, export_all, export_package
from .tables import bundle_json, bundle_markdown

__all__ = ["Job"]

_DEFAULT_SIDE = 224


@dataclass(frozen=True)
class _Source:
    network: nn.Module
    info: ModelInfo
    reference: NetworkReference
    data: str


class Job:
    """One call of ``deeprank-export``; ``dataset``: its pictures, ``labels``: their source.

    Raises:
        DeepRankError: the run or the module cannot be loaded.

    """

    def __init__(self, options: ExportOptions, progress: StartProgress) -> None:
        self._options = options
        self._source = _from_run(options) if options.module is None else _from_module(options)
        self._data = options.data or self._source.data
        reference = self._source.reference
        self.labels = options.labels
        if self.labels is None and isinstance(reference, Reference):
            self.labels = reference.labels_of(self._data)
        dataset = open_dataset(self._data, labels=self.labels)
        self.dataset: DataSet = reference.split(dataset) if isinstance(reference, Reference) else dataset
        self._checks = Checks(
            full=options.parity == "full",
            threads=options.threads,
            calibration_pictures=options.calibration_pictures,
            sample_pictures=options.sample_pictures,
            max_abs_difference=options.max_difference,
            min_cosine=options.min_cosine,
            precision_change=options.precision_change,
            progress=progress,
        )

    @property
    def out(self) -> Path:
        """The file, or the folder of all forms."""
        options = self._options
        if options.out is not None:
            return options.out
        if options.format == ALL:
            return Path("exported")
        return Path(f"model{form_of(options.format, options.precision).suffix}")

    @property
    def pictures(self) -> Path | None:
        """The folder of the data set, as a path to type here; None if it is not a folder."""
        folder = Path(self._data)
        return from_here(folder.resolve()) if folder.is_dir() else None

    def one_form(self) -> Package:
        """Write the form of ``--format`` and ``--precision``."""
        source, form = self._source, form_of(self._options.format, self._options.precision)
        with refused_as_export():
            return export_package(
                source.network, source.info, source.reference, self.dataset, self.out, form=form, checks=self._checks
            )

    def all_forms(self) -> Bundle:
        """Write every form, and the comparison as ``comparison.md`` and ``comparison.json``."""
        source = self._source
        bundle = export_all(source.network, source.info, source.reference, self.dataset, self.out, checks=self._checks)
        document = bundle_markdown(bundle)
        listed = json.dumps(bundle_json(bundle), indent=2) + "\n"
        write_result(listed.encode(), self.out / "comparison.json", ExportError)
        write_result(document.encode(), self.out / "comparison.md", ExportError)
        if self._options.report:  # through a link or to /dev/stdout, so not by renaming
            self._options.report.write_text(document, encoding="utf-8")
        return bundle


def _from_run(options: ExportOptions) -> _Source:
    reference = Reference(options.run or Path("runs/latest"))
    return _Source(reference.network, _described(reference.info, options), reference, reference.data)


def _from_module(options: ExportOptions) -> _Source:
    assert options.module is not None
    assert options.data is not None
    module = module_from_factory(options.module, options.state)
    side = options.image_size or _own_side(module) or _DEFAULT_SIDE
    info = ModelInfo(
        name=options.name or options.module,
        embedding_dim=0,
        picture=PictureRule(side, options.picture_mode),  # type: ignore[arg-type]
        backbone=type(module).__name__,
    )
    network, info = foreign_network(
        module, None, info, three_numbers("--mean", options.mean), three_numbers("--std", options.deviation)
    )
    return _Source(network, _described(info, options), ModuleReference(network, info), options.data)


def _described(info: ModelInfo, options: ExportOptions) -> ModelInfo:
    """Return the metadata with what the command line says of the model.

    Raises:
        ExportError: the license or the distance is not allowed.

    """
    named = info.license if options.license is None else options.license
    return checked_info(replace(info, license=named, unrelated_distance=options.unrelated_distance))


def _own_side(module: nn.Module) -> int | None:
    """Return the picture size of a timm model, or None."""
    carried = getattr(module, "pretrained_cfg", None)
    size = carried.get("input_size") if isinstance(carried, dict) else None
    return int(size[-1]) if size else None
