"""Write a network in any form and open the file; shared intermediate results are computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ...runtime.devices import session_options
from ...runtime.embedder import Embedder
from ...runtime.images import Picture
from ...runtime.modelfile import ModelInfo
from ...runtime.progress import StartProgress, start_nothing
from ..parity import Exported
from ..quantise.float16 import check_range, to_float16
from ..quantise.graph import anatomy_of, prepared
from ..quantise.search import Quantisation, quantise
from ..sample import extreme_pictures
from .float_input import FLOAT_INPUT, FloatModel, float_form, preprocessor_json
from .formats import Form, Precision
from .onnx import save_onnx

if TYPE_CHECKING:
    import onnx

__all__ = ["Network", "Writer", "Written", "WrittenFloat"]

# Pictures that, with numeric extremes, show the range of values inside a network.
_RANGE_PICTURES = 64


class Network(Protocol):
    """The source of every form: a PyTorch network, or an ONNX graph from elsewhere."""

    @property
    def precision(self) -> Precision:
        """The precision of its graph."""

    def graph(self) -> onnx.ModelProto:
        """Return its graph by Contract 2, without metadata.

        Raises:
            ExportError: it cannot be expressed in ONNX.

        """

    def write(self, form: Form, path: Path, info: ModelInfo) -> Exported:
        """Write a form other than ONNX to ``path`` and open that file.

        Raises:
            ExportError: it cannot be written in this form.
            OSError: the file cannot be written.

        """

    def packages(self, form: Form) -> tuple[str, ...]:
        """Return the packages that make a form, for its metadata."""


@dataclass(frozen=True)
class Written:
    """A file that was written and opened; ``quantisation`` for int8 only."""

    form: Form
    path: Path
    info: ModelInfo
    exported: Exported
    quantisation: Quantisation | None = None


@dataclass(frozen=True)
class WrittenFloat:
    """The float form of a file; ``preprocessor``: its preparation for other programs, or None."""

    path: Path
    exported: FloatModel
    preprocessor: str | None


class Writer:
    """Writes one network in any of :data:`~.formats.FORMS`.

    Args:
        network: the source.
        info: metadata of the files; precision and versions are added here.
        calibration: returns pictures of the train split, uint8 ``[n, S, S, 3]``; called for fp16
            and int8 only.
        threads: of ONNX Runtime.
        progress: receives the progress of int8.

    """

    def __init__(
        self,
        network: Network,
        info: ModelInfo,
        calibration: Callable[[], Picture],
        threads: int | None = None,
        progress: StartProgress = start_nothing,
    ) -> None:
        self._network, self._info, self._calibration = network, info, calibration
        self._threads, self._progress = threads, progress

    def write(self, form: Form, path: Path) -> Written:
        """Write the network to ``path`` and open that file.

        Raises:
            ExportError: the network cannot be written in this form.
            OSError: the file cannot be written.

        """
        packages = ("deep-ranking", *self._network.packages(form))
        versions = {package: version(package) for package in packages}
        info = replace(self._info, precision=form.precision, versions=versions)
        if form.format != "onnx":
            return Written(form, path, info, self._network.write(form, path, info))
        model, quantisation = self._in_precision(form)
        save_onnx(model, info, path)
        return Written(form, path, info, Embedder(path, device="cpu", threads=self._threads), quantisation)

    def write_float(self, written: Written, path: Path) -> WrittenFloat:
        """Write the float form of a file to ``path`` and open it.

        Raises:
            ExportError: the file's first operators do more than normalise pixels.
            OSError: the file cannot be written.

        """
        import onnx

        model, normalisation = float_form(onnx.load(written.path))
        save_onnx(model, written.info, path, (FLOAT_INPUT, normalisation))
        opened = FloatModel(path, written.info, normalisation, self._threads)
        return WrittenFloat(path, opened, preprocessor_json(written.info.picture, normalisation))

    @functools.cached_property
    def _graph(self) -> onnx.ModelProto:
        return self._network.graph()

    @functools.cached_property
    def _prepared(self) -> onnx.ModelProto:
        return prepared(self._graph)

    @functools.cached_property
    def _pictures(self) -> Picture:
        return self._calibration()

    def _in_precision(self, form: Form) -> tuple[onnx.ModelProto, Quantisation | None]:
        if form.precision == self._network.precision:
            return self._graph, None
        if form.precision == "fp16":
            return self._in_half(), None
        return quantise(self._prepared, self._pictures, self._threads, self._progress)

    def _in_half(self) -> onnx.ModelProto:
        parts, extremes = anatomy_of(self._prepared), extreme_pictures(self._info.picture.size)
        pictures = np.concatenate([np.stack(list(extremes.values())), self._pictures[:_RANGE_PICTURES]])
        check_range(self._prepared, parts, pictures, session_options(self._threads)[1])
        return to_float16(self._prepared, parts)
