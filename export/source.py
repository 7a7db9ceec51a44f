"""The network to export: of a run, from a function, or of an ONNX file from elsewhere.

PyTorch is imported by the first two alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..models.normalisation import Normalisation
from ..runtime.datasets import DataSet
from ..runtime.errors import ExportError, MissingExtraError, ModelFileError
from ..runtime.files import file_sha256, open_regular
from ..runtime.images import PictureRule
from ..runtime.model.records import read_metadata
from ..runtime.modelfile import ModelInfo
from ..runtime.text import display_path, printable
from .adopt.preparation import Preparation
from .adopt.preprocessor import preparation_of_timm, preprocessor_beside, read_preprocessor
from .formats.formats import Form, Precision
from .formats.writer import Network
from .metadata import checked_info
from .options import ExportOptions, three_numbers
from .parity import Exported, Original

if TYPE_CHECKING:
    import onnx

    from ..train.ratings.head import Head
    from ..train.run.folder import RunFolder
    from .adopt.adoption import Adopted
    from .adopt.original import Original as OriginalFile
    from .adopt.outputs import Pool

__all__ = ["Source", "source_of"]

_DEFAULT_SIDE = 224


@dataclass(frozen=True)
class Source:
    """A network, its metadata, and the original that its files are compared with.

    ``data``: the pictures that it names, or None. ``pictures``: those that its ratings are of,
    without labels, or None. ``labels_of``: the source of their labels, by the path of a data set. ``split``: divides
    them as its training did. ``remarks``: what was chosen without being asked for.
    """

    network: Network
    info: ModelInfo
    original: Original
    data: str | None = None
    labels_of: Callable[[str], str | None] = lambda _data: None
    split: Callable[[DataSet], DataSet] = lambda dataset: dataset
    pictures: Callable[[], DataSet | None] = lambda: None
    remarks: tuple[str, ...] = ()


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
    from ..train.ratings.run import HEAD, read_head
    from ..train.reference import Reference
    from ..train.run.folder import open_run
    from .formats.torch_network import TorchNetwork

    run = open_run(options.run)
    if (run.path / HEAD).exists() and (head := read_head(run)) is not None:
        return _from_ratings(run, head, options.threads)
    reference = Reference(options.run)
    return Source(
        TorchNetwork(reference.network, reference.rule),
        reference.info,
        reference,
        reference.data,
        reference.labels_of,
        reference.split,
    )


def _from_ratings(run: RunFolder, head: Head, threads: int | None) -> Source:
    """Open the model that a head was learned on, and the pictures of its index for the proof."""
    from ..train.ratings.run import START
    from .teach.pictures import pictures_of
    from .teach.proof import TaughtNetwork, TaughtReference
    from .teach.start import read_start, taught_info

    start = read_start(run.path / START)
    info = taught_info(start, head)
    described = run.read_config().get("data")
    place = described.get("path") if isinstance(described, dict) else None

    def pictures() -> DataSet | None:
        return pictures_of(place) if isinstance(place, str) else None

    return Source(TaughtNetwork(start, head), info, TaughtReference(start, head, info, threads), pictures=pictures)


def _from_module(options: ExportOptions, name: str) -> Source:
    from .api import foreign_network
    from .external_module import ModuleReference, module_from_factory
    from .formats.torch_network import TorchNetwork

    module = module_from_factory(name, options.state)
    record = getattr(module, "pretrained_cfg", None)  # timm's
    rule, normalisation = _module_pictures(options, record if isinstance(record, dict) else {})
    info = ModelInfo(name=options.name or name, embedding_dim=0, picture=rule, backbone=type(module).__name__)
    mean, deviation = three_numbers("--mean", options.mean), three_numbers("--std", options.deviation)
    network, info = foreign_network(module, None, info, mean, deviation, normalisation)
    return Source(TorchNetwork(network, info.picture), info, ModuleReference(network, info))


def _module_pictures(options: ExportOptions, record: Mapping[str, Any]) -> tuple[PictureRule, Normalisation | None]:
    """Return the rule and the normalisation that options state, else those of timm's record.

    ``--image-size`` and ``--picture-mode`` alone state a rule of version 1, as runs have.
    """
    stated_anew = (options.preprocessor, options.size, options.interpolation) != (None, None, None)
    if not stated_anew and (options.image_size is not None or options.picture_mode is not None or not record):
        side = options.image_size or _own_side(record) or _DEFAULT_SIDE
        return PictureRule.of(side, options.picture_mode or "stretch"), None  # type: ignore[arg-type]
    stated = _stated_preparation(options, preparation_of_timm(record) if record else None)
    return stated.rule(options.image_size or stated.size or _DEFAULT_SIDE), stated.normalisation


def _own_side(record: Mapping[str, Any]) -> int | None:
    size = record.get("input_size")
    return int(size[-1]) if size else None


def _stated_preparation(options: ExportOptions, base: Preparation | None) -> Preparation:
    """Return the preparation of ``--preprocessor`` or ``base``, with what other options state."""
    if options.preprocessor is not None:
        base = read_preprocessor(options.preprocessor)
    mode = options.picture_mode or (None if options.size is None else "stretch" if options.crop is None else "crop")
    return Preparation.of(
        mean=three_numbers("--mean", options.mean),
        std=three_numbers("--std", options.deviation),
        size=options.crop or options.size,
        mode=mode,
        resize=None if options.crop is None else options.size,
        interpolation=options.interpolation,
        base=base,
    )


def _from_onnx(options: ExportOptions, path: Path) -> Source:
    from .adopt.adoption import adopt
    from .adopt.original import read_original
    from .adopt.reference import OriginalReference

    original = read_original(path)
    own = _own_info(path)
    stated = _stated_preparation(options, _known_preparation(path, own) if options.preprocessor is None else None)
    pool = cast("Pool | None", options.pool)
    adopted = adopt(original, stated, output=options.output, pool=pool, threads=options.threads)
    described = own or ModelInfo(
        name=_name_of(path),
        embedding_dim=adopted.dim,
        picture=adopted.rule,
        backbone=f"ONNX file {display_path(path.name)}",
        training={"adopted": _provenance(original, adopted)},
    )
    info = replace(
        described,
        name=options.name or described.name,
        embedding_dim=adopted.dim,
        picture=adopted.rule,
        precision=adopted.precision,
    )
    network = AdoptedNetwork(adopted.graph, cast(Precision, adopted.precision))
    reference = OriginalReference(original, adopted, info, options.threads)
    return Source(network, info, reference, remarks=_remarks(options, adopted))


def _own_info(path: Path) -> ModelInfo | None:
    """Return the metadata of a file that deeprank wrote; None for other files.

    Raises:
        ExportError: it is damaged.

    """
    try:
        with open_regular(path, follow_links=True) as file:
            text = read_metadata(file)
        return None if text is None else ModelInfo.from_json(text)
    except ModelFileError as error:
        raise ExportError(f"{display_path(path)} has {error}.") from None


def _known_preparation(path: Path, own: ModelInfo | None) -> Preparation | None:
    """Return the preparation that the file itself states, or a file beside it."""
    beside = preprocessor_beside(path)
    if own is None:
        return beside
    stated = Preparation.of_rule(own.picture, "its own metadata")
    # The float form of a model file: the file beside it has the normalisation.
    return stated if beside is None else replace(stated, normalisation=beside.normalisation)


def _remarks(options: ExportOptions, adopted: Adopted) -> tuple[str, ...]:
    """Say what was taken of the file, and how its pictures are prepared."""
    source = adopted.preparation.source
    taken = (
        f"input {adopted.picture}, output {printable(adopted.output)!r} (pooling: {adopted.pooling}), {adopted.dim} "
        f"numbers; pictures of {adopted.rule}, by {printable(source)}"
    )
    if source != "options" or (options.size, options.picture_mode) != (None, None):
        return (taken,)
    return taken, "Nothing says how pictures are resized, so they are stretched; --size and --crop state it."


def _name_of(path: Path) -> str:
    """Return a name for a model: the file's, or that of its repository's folder."""
    if path.stem not in ("model", "vision_model", "visual"):
        return path.stem
    folder = path.absolute().parent
    return (folder.parent if folder.name == "onnx" else folder).name or path.stem


def _provenance(original: OriginalFile, adopted: Adopted) -> dict[str, Any]:
    """Describe the original for the metadata; without its place on this machine."""
    return {
        "file": original.path.name,
        "sha256": file_sha256(original.path),
        "input": str(adopted.picture),
        "output": adopted.output,
        "pooling": str(adopted.pooling),
    }


class AdoptedNetwork:
    """An adopted graph as a :class:`~.formats.writer.Network`."""

    def __init__(self, graph: onnx.ModelProto, precision: Precision) -> None:
        self._graph, self.precision = graph, precision

    def graph(self) -> onnx.ModelProto:
        """Return the adopted graph."""
        return self._graph

    def write(self, form: Form, path: Path, info: ModelInfo) -> Exported:
        """Refuse other forms than ONNX.

        Raises:
            ExportError: always.

        """
        raise ExportError(f"{form.name} needs a network in PyTorch; an adopted file becomes ONNX alone.")

    def packages(self, form: Form) -> tuple[str, ...]:
        """Return the packages that make a form, for its metadata."""
        return ("onnx",)
