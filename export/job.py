"""Run an export: load the network, open the pictures, write the files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..runtime.console import from_here
from ..runtime.datasets import DataSet, open_dataset
from ..runtime.files import placed
from ..runtime.images import PictureRule
from ..runtime.modelfile import ModelInfo
from ..runtime.progress import StartProgress
from ..train.reference import NetworkReference, Reference
from .api import foreign_network, refused_as_export
from .asked import Asked, three_numbers
from .factory import module_from_factory
from .foreign import ModuleReference
from .forms import form_of
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

    def __init__(self, asked: Asked, progress: StartProgress) -> None:
        self._asked = asked
        self._source = _from_run(asked) if asked.module is None else _from_module(asked)
        self._data = asked.data or self._source.data
        reference = self._source.reference
        self.labels = asked.labels
        if self.labels is None and isinstance(reference, Reference):
            self.labels = reference.labels_of(self._data)
        dataset = open_dataset(self._data, labels=self.labels)
        self.dataset: DataSet = reference.split(dataset) if isinstance(reference, Reference) else dataset
        self._checks = Checks(
            asked.parity == "full",
            asked.threads,
            asked.calibration_pictures,
            asked.max_difference,
            asked.min_cosine,
            asked.precision_change,
            progress,
        )

    @property
    def out(self) -> Path:
        """The output file, or the folder of all forms."""
        asked = self._asked
        if asked.out is not None:
            return asked.out
        if asked.format == "all":
            return Path("exported")
        return Path(f"model{form_of(asked.format, asked.precision).suffix}")

    @property
    def pictures(self) -> Path | None:
        """The folder of the data set, as a path to type here; None if it is not a folder."""
        folder = Path(self._data)
        return from_here(folder.resolve()) if folder.is_dir() else None

    def one_form(self) -> Package:
        """Write the requested form."""
        source, form = self._source, form_of(self._asked.format, self._asked.precision)
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
        for name, text in (("comparison.json", listed), ("comparison.md", document)):
            with placed(self.out / name) as file:
                file.write(text.encode())
        if self._asked.report:
            self._asked.report.write_text(document, encoding="utf-8")
        return bundle


def _from_run(asked: Asked) -> _Source:
    reference = Reference(asked.run or Path("runs/latest"))
    return _Source(reference.network, reference.info, reference, reference.data)


def _from_module(asked: Asked) -> _Source:
    assert asked.module is not None
    assert asked.data is not None
    module = module_from_factory(asked.module, asked.state)
    side = asked.image_size or _own_side(module) or _DEFAULT_SIDE
    info = ModelInfo(
        name=asked.name or asked.module,
        embedding_dim=0,
        picture=PictureRule(side, asked.picture_mode),  # type: ignore[arg-type]
        backbone=type(module).__name__,
    )
    network, info = foreign_network(
        module, None, info, three_numbers("--mean", asked.mean), three_numbers("--std", asked.deviation)
    )
    return _Source(network, info, ModuleReference(network, info), asked.data)


def _own_side(module: nn.Module) -> int | None:
    """Return the picture size of a timm model, or None."""
    carried = getattr(module, "pretrained_cfg", None)
    size = carried.get("input_size") if isinstance(carried, dict) else None
    return int(size[-1]) if size else None
