"""Adoption: the graph of an ONNX file from elsewhere becomes one of a model file (Contract 2).

Normalisation stands before it, pooling and scaling to unit length behind it. Files of these layouts
are meant: Hugging Face's ``onnx/model.onnx`` and ``onnx/vision_model.onnx`` (Xenova/clip-vit-base-patch32,
onnx-community/dinov2-base, optimum's exports), and what ``torch.onnx`` writes. None of those real files
was tried; the tests write files of the same layouts.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import ExportError, ModelFileError
from ...runtime.images import Picture, PictureRule
from ...runtime.modelfile import INPUT_NAME, OUTPUT_NAME
from ...runtime.text import display_path, printable
from ..sample import extreme_pictures
from .batch import free_batch
from .folding import fold_constants
from .graph import at_least, is_onnx, opset_of, part_of, rename, to_bytes
from .inputs import PictureInput, picture_input
from .layers import Layers
from .original import Original
from .outputs import Pool, Pooling, choose_output, pooling_of
from .preparation import MAX_SIDE, Preparation
from .session import BareSession
from .shapes import shapes_of
from .structure import graphs_in

if TYPE_CHECKING:
    import onnx

__all__ = ["Adopted", "adopt"]

_MAX_DIM = 65536
_REMEDY = "Export it again with a free batch axis (dynamic_axes or dynamic_shapes of torch.onnx.export)."
_OLDEST_OPSET = 11
# Operators of another library that are named in a refusal.
_SHOWN_OPERATORS = 6
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv")
_FLOAT16 = 10
# Pictures of the check, and the numbers of pictures in its batches.
_CHECKED = ("noise", "red", "checkerboard of 8", "ramp", "checkerboard of 1")
_BATCHES = (2, 5)
# By precision, the difference of a vector in another batch: absolute, and as a share of the distance
# between different pictures. Dynamic int8 has one scale for a whole batch.
_DIFFERENCES = {"fp32": (1e-4, 0.05), "fp16": (5e-3, 0.1), "int8": (5e-2, 0.5)}


class _BatchError(ExportError):
    """A graph does not take batches."""


@dataclass(frozen=True)
class Adopted:
    """An adopted graph.

    Attributes:
        graph: input ``image`` uint8 ``[n, S, S, 3]``, output ``embedding`` float32 ``[n, d]``, unit
            rows; without metadata.
        rule: of its pictures, at the graph's side S.
        dim: d.
        precision: fp32, fp16 or int8, by what the graph holds.
        picture: the original's input.
        output: name of the original's output.
        pooling: how that output becomes vectors.
        preparation: of the pictures; None: the graph takes uint8, and none was stated.
        normalised: whether the graph made here normalises; a graph on uint8 does that itself.

    """

    graph: onnx.ModelProto
    rule: PictureRule
    dim: int
    precision: str
    picture: PictureInput
    output: str
    pooling: Pooling
    preparation: Preparation

    @property
    def side(self) -> int:
        """S, in pixels."""
        return self.rule.size

    @property
    def normalised(self) -> bool:
        """Whether pictures are normalised before the original's input."""
        return self.picture.kind != "uint8"


def adopt(
    original: Original,
    preparation: Preparation | None,
    *,
    output: str | None = None,
    pool: Pool | None = None,
    threads: int | None = None,
) -> Adopted:
    """Make the graph of a model file from one of elsewhere, and check that it takes batches.

    Args:
        original: from :func:`~.original.read_original`.
        preparation: of its pictures; None: none is known, which suits only a uint8 input of fixed
            size.
        output: the output to take; default: see :func:`~.outputs.choose_output`.
        pool: how tokens or maps become vectors; None: the output has vectors.
        threads: of ONNX Runtime.

    Raises:
        ExportError: it cannot be adopted; the sentence says why, and what to do.

    """
    with _naming(original):
        chosen = choose_output(original.model.graph, output, pool)
        picture = picture_input(original.model.graph, chosen.name)
        stated = _checked_preparation(preparation, picture)
        side = _side(picture, stated)
        rule = stated.rule(side)
        part = _plain_part(original.model, chosen)
        fold_constants(part, threads)
        precision = _precision(part)
        new = rename(part.graph, (INPUT_NAME, OUTPUT_NAME))
        given, made = new.get(picture.name, picture.name), new.get(chosen.name, chosen.name)

        def assembled(part: onnx.ModelProto) -> Adopted:
            pooling = _assemble(part, picture, given, made, stated, side, pool, threads)
            adopted = Adopted(part, rule, pooling.dim, precision, picture, chosen.name, pooling, stated)
            _check_batches(adopted, threads)
            return adopted

        return assembled(part) if picture.batch is None else _freed(part, picture, given, side, assembled, threads)


@contextlib.contextmanager
def _naming(original: Original) -> Iterator[None]:
    """Name the file in errors of its graph."""
    try:
        yield
    except ModelFileError as error:
        raise ExportError(f"{display_path(original.path)} cannot be adopted: {error}.") from None
    except ExportError as error:
        raise ExportError(f"{display_path(original.path)} cannot be adopted. {error}") from None


def _checked_preparation(preparation: Preparation | None, picture: PictureInput) -> Preparation:
    stated = preparation or Preparation()
    if picture.kind == "uint8":
        if stated.normalisation is not None and stated.source == "options":
            raise ExportError(
                f"The input {picture} takes unnormalised pictures and normalises them itself. "
                "Leave --mean and --std out."
            )
        return stated
    if stated.normalisation is None:
        raise ExportError(
            f"The input {picture} takes normalised pictures, and how is not known. Give --preprocessor "
            "preprocessor_config.json, or --mean and --std (three numbers each, on the scale 0..1)."
        )
    return stated


def _side(picture: PictureInput, stated: Preparation) -> int:
    if picture.side is None and stated.size is None:
        raise ExportError("The graph takes pictures of any size; say which with --size, or give --preprocessor.")
    if picture.side is not None and stated.size not in (None, picture.side):
        raise ExportError(
            f"The graph takes pictures of {picture.side} x {picture.side} pixels, but {stated.source} says "
            f"{stated.size}. Take the file that belongs to it, or --size {picture.side}."
        )
    side = picture.side or stated.size
    assert side is not None
    if side > MAX_SIDE:
        raise ExportError(f"The graph takes pictures of {side} x {side} pixels; expected at most {MAX_SIDE}.")
    return side


def _plain_part(model: onnx.ModelProto, chosen: onnx.ValueInfoProto) -> onnx.ModelProto:
    """Return the part that computes one output, in ONNX's own operators."""
    part = part_of(model, [chosen])
    nodes = [*part.graph.node, *(node for graph in graphs_in(list(part.graph.node)) for node in graph.node)]
    foreign = sorted({f"{node.domain}.{node.op_type}"[:80] for node in nodes if not is_onnx(node.domain)})
    if foreign:
        more = f" and {len(foreign) - _SHOWN_OPERATORS} more" if len(foreign) > _SHOWN_OPERATORS else ""
        raise ExportError(
            f"It has operators that are not ONNX's own: {printable(', '.join(foreign[:_SHOWN_OPERATORS]))}{more}. Such "
            "files are optimised for one library; take the unoptimised one, such as onnx/model.onnx."
        )
    opset = opset_of(part)
    del part.opset_import[:]
    part.opset_import.add(domain="", version=opset)
    if opset < _OLDEST_OPSET:
        part = at_least(part, _OLDEST_OPSET)
    return part


def _precision(part: onnx.ModelProto) -> str:
    """Return what the graph computes in: int8 if it has quantised operators, fp16 if most weights are."""
    if any(node.op_type in _QUANTISED for node in part.graph.node):
        return "int8"
    sizes = {True: 0, False: 0}
    for tensor in part.graph.initializer:
        sizes[tensor.data_type == _FLOAT16] += len(tensor.raw_data)
    return "fp16" if sizes[True] > sizes[False] else "fp32"


def _assemble(
    part: onnx.ModelProto,
    picture: PictureInput,
    given: str,
    made: str,
    stated: Preparation,
    side: int,
    pool: Pool | None,
    threads: int | None,
) -> Pooling:
    """Add the layers from uint8 pictures and to unit vectors; return the pooling of the original's output.

    The graph is run once without pooling, for only that shows the shape of many files' outputs.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in (*part.graph.input, *part.graph.output)}
    layers = Layers(part, side)
    layers.prepend(given, types[given], picture.layout, stated.normalisation if picture.kind != "uint8" else None)
    layers.output(made, types[made])
    pictures = _pictures(side)[: 2 if picture.batch is None else 1]
    raw = BareSession(to_bytes(part), threads=threads).run([made], {INPUT_NAME: pictures})[0]
    if raw.ndim == 0 or len(raw) != len(pictures):
        raise ExportError(f"The output has the shape {list(raw.shape)} for {len(pictures)} pictures.")
    if raw.dtype not in (np.float32, np.float16, np.float64):
        raise ExportError(f"The output has numbers of type {raw.dtype}; expected floating point.")
    pooling = pooling_of(raw.shape, pool, side)
    if not 1 <= pooling.dim <= _MAX_DIM:
        raise ExportError(f"The vectors have {pooling.dim:,} numbers; expected 1 to {_MAX_DIM:,}.")
    layers.append(made, pooling, raw.dtype != np.float32)
    return pooling


def _freed(
    part: onnx.ModelProto,
    picture: PictureInput,
    given: str,
    side: int,
    assembled: Callable[[onnx.ModelProto], Adopted],
    threads: int | None,
) -> Adopted:
    """Assemble a graph for one picture with a free batch axis; reshapes leave open where it is, so try both."""
    import onnx

    if picture.batch != 1:
        raise ExportError(f"The graph takes {picture.batch} pictures at a time; expected any number, or one. {_REMEDY}")
    sizes = (1, 3, side, side) if picture.layout == "NCHW" else (1, side, side, 3)
    value = next(value for value in part.graph.input if value.name == given)
    for size, number in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
        size.dim_value = number
    shapes = shapes_of(part, given, sizes, threads)
    fault: _BatchError | None = None
    for computed, first in itertools.product((False, True), (True, False)):
        tried = onnx.ModelProto()
        tried.CopyFrom(part)
        try:
            free_batch(tried, given, shapes, first=first, computed=computed)
            return assembled(tried)
        except (IndexError, ValueError) as error:  # axes that a hostile graph states
            raise ExportError(f"The graph takes one picture at a time, and cannot be changed. {_REMEDY}") from error
        except _BatchError as error:
            fault = fault or error
    assert fault is not None
    raise fault


def _pictures(side: int) -> Picture:
    """Return the pictures of the check, uint8 ``[5, S, S, 3]``."""
    pictures = extreme_pictures(side)
    return np.stack([pictures[name] for name in _CHECKED])


def _check_batches(adopted: Adopted, threads: int | None) -> None:
    """Check that a picture's vector does not depend on the number of pictures beside it.

    Raises:
        ExportError: it does, or the graph cannot be run on several pictures.

    """
    session = BareSession(to_bytes(adopted.graph), threads=threads)
    pictures = _pictures(adopted.side)

    def vectors(some: Picture) -> npt.NDArray[Any]:
        return session.run([OUTPUT_NAME], {INPUT_NAME: some})[0]

    single = np.concatenate([vectors(pictures[row : row + 1]) for row in range(len(pictures))])
    if single.shape != (len(pictures), adopted.dim) or not np.isfinite(single).all():
        raise ExportError("The vectors of some pictures are not finite; check its weights and its normalisation.")
    absolute, share = _DIFFERENCES[adopted.precision]
    distances = np.linalg.norm(single[:, None] - single[None], axis=2)
    allowed = max(absolute, share * float(distances[distances > 0].mean() if distances.any() else 0))
    for count in _BATCHES:
        try:
            together = vectors(pictures[:count])
        except ExportError as error:
            raise _BatchError(f"It cannot be run on several pictures at once. {error} {_REMEDY}") from None
        worst = np.linalg.norm(together - single[:count], axis=1).max() if len(together) == count else np.inf
        if not worst <= allowed:
            raise _BatchError(f"A picture's vector changes with the pictures beside it, by {worst:.3g}. {_REMEDY}")
