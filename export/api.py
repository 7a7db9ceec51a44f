"""Export from Python: any PyTorch module to a file that the runtime takes, with the same proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..models.normalisation import IMAGENET
from ..runtime.datasets import DataSet, open_dataset
from ..runtime.errors import ExportError
from ..runtime.modelfile import ModelInfo
from ..train.reference import NetworkReference
from .example import example_pictures
from .foreign import PictureNetwork, check_examples, embedding_dim_of, normalisation_of, normalised
from .forms import FORMS, Form
from .package import Checks, Package, export_package

__all__ = ["export_onnx", "foreign_network"]


def export_onnx(
    module: nn.Module,
    example_images: torch.Tensor,
    info: ModelInfo,
    *,
    data: DataSet | str | Path,
    out: str | Path = "model.onnx",
    mean: Sequence[float] | None = None,
    deviation: Sequence[float] | None = None,
    precision: str = "fp32",
    checks: Checks | None = None,
) -> Package:
    """Export any module to one ONNX file, with ``*.parity.json`` and ``*.reference.npz`` beside it, all or none.

    The file takes uint8 pictures and gives unit vectors: normalisation before the module and scaling after it become
    part of it. It is written only if it ranks like the module on real pictures.

    Args:
        module: float32 ``[n, 3, S, S]``, normalised, to float ``[n, d]``; on the CPU. It is run in evaluation mode.
        example_images: a batch as the module takes it, float32 ``[n, 3, S, S]``, n of at least 2; from your own data
            loader, so that a normalisation other than the one named here is noticed.
        info: what the file says of itself: name, ``embedding_dim``, the picture rule (S, ``stretch`` or ``crop``),
            backbone; precision and versions are added.
        data: labelled pictures for the proof: what ``--data`` takes.
        out: the file.
        mean: per channel, for pixel values in 0..1; default: that which a timm model carries, else ImageNet's.
        deviation: likewise.
        precision: ``fp32``, ``fp16`` or ``int8``.
        checks: how the file is checked.

    Raises:
        ExportError: the module cannot be run or written, or the file does not rank like it.
        DataError: the pictures cannot be read.

    """
    form = Form("onnx", precision)  # type: ignore[arg-type]
    if form not in FORMS:
        raise ExportError(f"precision {precision!r}; expected fp32, fp16 or int8.")
    network, info = foreign_network(module, example_images, info, mean, deviation)
    dataset = data if isinstance(data, DataSet) else open_dataset(str(data))
    reference = NetworkReference(network, info, torch.device("cpu"))
    before = module.training
    try:
        return export_package(network, info, reference, dataset, Path(out), form=form, checks=checks)
    finally:
        module.train(before)


def foreign_network(
    module: nn.Module,
    example_images: torch.Tensor | None,
    info: ModelInfo,
    mean: Sequence[float] | None = None,
    deviation: Sequence[float] | None = None,
) -> tuple[PictureNetwork, ModelInfo]:
    """Return a network that takes pictures, in evaluation mode, and ``info`` with its length of vectors checked.

    Args:
        module: see :func:`export_onnx`.
        example_images: see :func:`export_onnx`; None: noise, normalised as the module expects.
        info: see :func:`export_onnx`; an ``embedding_dim`` of 0 is filled in.
        mean: see :func:`export_onnx`.
        deviation: see :func:`export_onnx`.

    Raises:
        ExportError: see :func:`~.foreign.embedding_dim_of`, or the dimension is another than ``info`` says.

    """
    module.eval()
    normalisation = normalisation_of(module, mean, deviation, IMAGENET)
    if example_images is None:
        example_images = normalised(example_pictures(info.picture, count=2), normalisation)
    check_examples(example_images, info, normalisation)
    dim = embedding_dim_of(module, example_images)
    if info.embedding_dim not in (0, dim):
        raise ExportError(
            f"The module gives vectors of {dim} numbers, and info.embedding_dim is {info.embedding_dim}; expected the "
            "same."
        )
    return PictureNetwork(module, normalisation).eval(), replace(info, embedding_dim=dim)
