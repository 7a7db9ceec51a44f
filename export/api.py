"""Export from Python: any PyTorch module to a file for the runtime, with the same proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..models.normalisation import Normalisation
from ..runtime.datasets import DataSet, open_dataset
from ..runtime.errors import ExportError
from ..runtime.modelfile import ModelInfo
from .external_module import (
    ModuleReference,
    PictureNetwork,
    check_examples,
    check_weights,
    embedding_dim_of,
    normalisation_of,
    normalised,
    preserved_modes,
)
from .formats.formats import FORMS, Form
from .formats.torch_network import TorchNetwork
from .formats.torchfile import example_pictures
from .metadata import checked_info, refused_as_export
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
    """Export any module to one ONNX file, with ``*.parity.json`` and ``*.reference.npz`` beside it.

    All three files are written, or none. The file maps uint8 pictures to unit vectors: it includes
    normalisation before the module and scaling after it. It is written only if it ranks like the
    module on real pictures. The module is not changed.

    Args:
        module: float32 ``[n, 3, S, S]``, normalised, to float ``[n, d]``; on the CPU, with float32
            weights. It runs in evaluation mode; afterwards each part of it has its previous mode.
        example_images: a batch for the module, float32 ``[n, 3, S, S]``, n at least 2. Take it from
            your data loader, so that a different normalisation is detected.
        info: metadata of the file: name, ``embedding_dim``, the picture rule (S, ``stretch`` or
            ``crop``), backbone, and a license if there is one; precision and versions are added.
        data: labelled pictures for the proof, as for ``--data``.
        out: the file.
        mean: per channel, for pixel values in 0..1; default: that of a timm model, else ImageNet's.
        deviation: likewise.
        precision: ``fp32``, ``fp16`` or ``int8``.
        checks: how to check the file.

    Raises:
        ExportError: the module cannot be run or written, or the file does not rank like it.
        DataError: the pictures cannot be read.
        OSError: a file cannot be written; earlier files of these names stay unchanged.

    """
    if not isinstance(module, nn.Module):
        raise ExportError(f"The module is a {type(module).__name__}; expected a torch.nn.Module.")
    form = Form("onnx", precision)  # type: ignore[arg-type]
    if form not in FORMS:
        raise ExportError(f"precision {precision!r}; expected fp32, fp16 or int8.")
    with preserved_modes(module), refused_as_export():
        network, info = foreign_network(module, example_images, info, mean, deviation)
        dataset = data if isinstance(data, DataSet) else open_dataset(str(data))
        reference = ModuleReference(network, info)
        source = TorchNetwork(network, info.picture)
        return export_package(source, info, reference, dataset, Path(out), form=form, checks=checks)


def foreign_network(
    module: nn.Module,
    example_images: torch.Tensor | None,
    info: ModelInfo,
    mean: Sequence[float] | None = None,
    deviation: Sequence[float] | None = None,
    default: Normalisation | None = None,
) -> tuple[PictureNetwork, ModelInfo]:
    """Return a network of pictures, in evaluation mode, and ``info`` with a checked dimension.

    Args:
        module: see :func:`export_onnx`.
        example_images: see :func:`export_onnx`; None: noise, normalised as the module expects.
        info: see :func:`export_onnx`; an ``embedding_dim`` of 0 is filled in.
        mean: see :func:`export_onnx`.
        deviation: see :func:`export_onnx`.
        default: the normalisation where neither is given; None: that of a timm model, else ImageNet's.

    Raises:
        ExportError: see :mod:`~.external_module`, or the dimension differs from that of ``info``.

    """
    check_weights(module)
    module.eval()
    normalisation = normalisation_of(module, mean, deviation, default)
    if example_images is None:
        example_images = normalised(example_pictures(info.picture, count=2), normalisation)
    check_examples(example_images, info, normalisation)
    dim = embedding_dim_of(module, example_images)
    if info.embedding_dim not in (0, dim):
        raise ExportError(
            f"The module returns vectors of {dim} numbers, but info.embedding_dim is {info.embedding_dim}; expected "
            "the same."
        )
    return PictureNetwork(module, normalisation).eval(), checked_info(replace(info, embedding_dim=dim))
