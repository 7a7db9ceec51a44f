"""The network to export: of a run, from a function, or of an ONNX file from elsewhere.

PyTorch is imported by the first two alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..runtime.datasets import DataSet
from ..runtime.errors import MissingExtraError
from ..runtime.images import PictureRule
from ..runtime.modelfile import ModelInfo
from .formats.writer import Network
from .metadata import checked_info
from .options import ExportOptions, three_numbers
from .parity import Original

__all__ = ["Source", "source_of"]

_DEFAULT_SIDE = 224


@dataclass(frozen=True)
class Source:
    """A network, its metadata, and the original that its files are compared with.

    ``data``: the pictures that it names, or None. ``labels_of``: the source of their labels, by the
    path of a data set. ``split``: divides them as its training did.
    """

    network: Network
    info: ModelInfo
    original: Original
    data: str | None = None
    labels_of: Callable[[str], str | None] = lambda _data: None
    split: Callable[[DataSet], DataSet] = lambda dataset: dataset


def source_of(options: ExportOptions) -> Source:
    """Open the network that the options name.

    Raises:
        DeepRankError: it cannot be opened, or its metadata is not allowed.

    """
    try:
        if options.from_onnx is not None:
            source = _from_onnx(options, options.from_onnx)
        elif options.module is not None:
            source = _from_module(options, options.module)
        else:
            source = _from_run(options)
    except ImportError as error:
        raise MissingExtraError("deeprank-export", "train" if options.from_onnx is None else "onnx") from error
    license_ = source.info.license if options.license is None else options.license
    info = replace(source.info, license=license_, unrelated_distance=options.unrelated_distance)
    return replace(source, info=checked_info(info))


def _from_run(options: ExportOptions) -> Source:
    from ..train.reference import Reference
    from .formats.torch_network import TorchNetwork

    reference = Reference(options.run or Path("runs/latest"))
    return Source(
        TorchNetwork(reference.network, reference.rule),
        reference.info,
        reference,
        reference.data,
        reference.labels_of,
        reference.split,
    )


def _from_module(options: ExportOptions, name: str) -> Source:
    from .api import foreign_network
    from .external_module import ModuleReference, module_from_factory
    from .formats.torch_network import TorchNetwork

    module = module_from_factory(name, options.state)
    record = getattr(module, "pretrained_cfg", None)  # timm's
    prepared = _module_preparation(options, record if isinstance(record, dict) else {})
    info = ModelInfo(name=options.name or name, embedding_dim=0, picture=prepared.rule, backbone=type(module).__name__)
    mean, deviation = three_numbers("--mean", options.mean), three_numbers("--std", options.deviation)
    network, info = foreign_network(module, None, info, mean, deviation, prepared.normalisation)
    return Source(TorchNetwork(network, info.picture), info, ModuleReference(network, info))


def _module_preparation(options: ExportOptions, record: Mapping[str, Any]) -> Preparation:
    """Return the preparation that the options state, else that of timm's record, else a stretch to 224 px."""
    if options.preprocessor is not None:
        return preparation_of(options.preprocessor)
    if options.size is not None or options.interpolation is not None:
        side = options.size or options.image_size or _own_side(record) or _DEFAULT_SIDE
        return Preparation(_stated_rule(options, side), IMAGENET)
    if options.image_size is not None or options.picture_mode is not None or not record:
        side = options.image_size or _own_side(record) or _DEFAULT_SIDE
        return Preparation(PictureRule.of(side, options.picture_mode or "stretch"), IMAGENET)  # type: ignore[arg-type]
    return preparation_of_timm(record)


def _stated_rule(options: ExportOptions, side: int) -> PictureRule:
    """Return the rule of ``--size``, ``--crop``, ``--interpolation`` and ``--picture-mode``."""
    mode = options.picture_mode or ("stretch" if options.crop is None else "crop")
    cut = options.crop or side
    return PictureRule.of(cut, mode, options.interpolation or "bilinear", side if cut != side else 0)  # type: ignore[arg-type]


def _own_side(record: Mapping[str, Any]) -> int | None:
    size = record.get("input_size")
    return int(size[-1]) if size else None
